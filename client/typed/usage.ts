import { type AggiosClient, createAggiosClient, ProblemError, type Role, unwrap } from '@aggios/client'

/*
 * Never runs: it compiles against the package as it is published, or a promise of its types is broken. Every line that must
 * not compile says so.
 */

export async function usage(): Promise<void> {
  const client: AggiosClient = createAggiosClient({ baseUrl: 'https://acme.aggios.app', retry: { times: 1 } })

  const { access_token, expires_in } = await client.signIn({ email: 'ada@example.com', password: 'correct horse' })
  exactly<string>()(access_token)
  exactly<number>()(expires_in)
  // @ts-expect-error a password is missing
  await client.signIn({ email: 'ada@example.com' })

  const completed = await client.completeSignIn({ mfa_token: 'Gm9v', code: '123456' })
  exactly<string[] | undefined>()(completed.recovery_codes)
  // @ts-expect-error a code is missing
  await client.completeSignIn({ mfa_token: 'Gm9v' })

  const me = await unwrap(client.GET('/api/v1/users/me'))
  exactly<Role>()(me.role)
  exactly<string | null>()(me.avatar_url)
  // @ts-expect-error there is no such member
  me.password
  // @ts-expect-error there is no such path
  await client.GET('/api/v1/users/you')
  // @ts-expect-error there is no such method
  await client.PUT('/api/v1/users/me', {})
  // @ts-expect-error the path has a parameter
  await client.DELETE('/api/v1/users/me/sessions/{id}')
  await client.DELETE('/api/v1/users/me/sessions/{id}', { params: { path: { id: me.id } } })
  // @ts-expect-error a name is text
  await client.PATCH('/api/v1/users/me', { body: { name: 1 } })

  const file = await client.uploadFile(new Blob(['x']), { name: 'notes.txt', purpose: 'contract' })
  exactly<number>()(file.size)
  exactly<Blob>()(await client.downloadFile(file.id))
  // @ts-expect-error text is no file
  await client.uploadFile('x')

  const { data, error } = await client.PATCH('/api/v1/users/me', { body: { name: 'Ada' } })
  // @ts-expect-error the catalogue has no such code
  if (error?.code === 'token_expird') return
  if (error?.code === 'token_expired') return
  exactly<string | undefined>()(data?.name)
}

export function explain(err: unknown): string {
  if (!(err instanceof ProblemError)) throw err
  exactly<number | undefined>()(err.retryAfter)
  exactly<string | undefined>()(err.provider)
  exactly<string | undefined>()(err.mfa_token)
  exactly<boolean>()(err.enroll)
  exactly<string | undefined>()(err.errors[0]?.path)
  switch (err.code) {
    case 'validation_failed':
      return err.errors.map(({ path, message }) => `${path} ${message}`).join('\n')
    case 'unexpected_reply':
      return 'Something between us and the server answered'
    // @ts-expect-error the catalogue has no such code
    case 'validation_faild':
      return 'never'
    default:
      return err.message
  }
}

/** Accepts a value of this type only, neither wider nor narrower. */
function exactly<Wanted>() {
  return <Given>(_value: Given & (Same<Wanted, Given> extends true ? unknown : never)): void => {}
}

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false

import { allRows, eventually, mailedTokens, mailsTo, post, type Reply, send, type TestApp } from './harness.ts'

/*
 * Links in mails about accounts, as a person gets them.
 */

export const paths = { reset: '/password/reset', verify: '/email/verify' } as const

/** Runs `act`, and resolves to the token of the next mail to the address whose link leads to the path. */
export async function linkMailedBy(
  app: TestApp,
  email: string,
  path: keyof typeof paths,
  act: () => Promise<unknown>
): Promise<string> {
  const tokens = () => mailedTokens(app, email, paths[path])
  const before = tokens().length
  await act()
  app.mail.wake()
  await eventually(() => tokens().length > before)
  return tokens().at(-1) as string
}

/** Waits until no mail about an account waits, but those of a kind that only a newer version knows. */
export async function mailsAreSent(app: TestApp): Promise<void> {
  const waiting = `select from account_mails where sent_at is null and dropped_at is null and kind <> 'later_kind'`
  app.mail.wake()
  await eventually(async () => (await allRows(app.database, waiting)).length === 0)
}

export const forgot = (app: TestApp, email: string, options: object = {}): Promise<Reply> =>
  send(app, 'localhost', { ...post('/auth/password/forgot', { email }), ...options })

/** Asks for a mail to set a new password, and resolves to its token. */
export const forgotToken = (app: TestApp, email: string) => linkMailedBy(app, email, 'reset', () => forgot(app, email))

export const reset = (app: TestApp, token: unknown, word: string, host = 'localhost'): Promise<Reply> =>
  send(app, host, post('/auth/password/reset', { token, password: word }))

export const verify = (app: TestApp, token: unknown, host = 'localhost'): Promise<Reply> =>
  send(app, host, post('/auth/email/verify', { token }))

/** As if everybody had confirmed their address. */
export const verifyAll = (app: TestApp) =>
  allRows(app.database, 'update users set email_verified_at = now() where email_verified_at is null')

/** The subjects of the mails to an address. */
export const subjectsTo = (app: TestApp, email: string) => mailsTo(app, email).map(({ subject }) => subject)

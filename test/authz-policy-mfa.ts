import { type Call, inFirst, type Policy, passing, read } from './authz-calls.ts'
import { createAuthenticator } from './factors.ts'
import { password } from './harness.ts'
import type { Person, Side, World } from './isolation-world.ts'

/*
 * The entries of test/authz-policy.ts for second factors.
 */

/** Makes a factor for the person, and returns a code of it that is good. */
async function plantFactor(
  { app, sql }: World,
  { id, email }: Pick<Person, 'id' | 'email'>,
  { confirmed }: { confirmed: boolean }
): Promise<{ code: string }> {
  const { stored, shown } = app.secondFactors.create(id, email)
  await sql.query(
    `insert into second_factors (user_id, id, secret, key_id, confirmed_at)
     values ($1, $2, $3, $4, case when $5 then now() end)`,
    [id, stored.id, stored.secret, stored.key_id, confirmed]
  )
  if (confirmed) await sql.query('update users set mfa_enabled_at = now() where id = $1', [id])
  return { code: createAuthenticator(shown.secret).code() }
}

/** The call of somebody who has given the right password for an agency. */
async function atSignIn(world: World, side: Side, purpose: 'sign_in' | 'enrollment'): Promise<Call> {
  const person = await world.plantPerson(side, 'member')
  const subject = { tenant_id: side.id, user_id: person.id, password_version: 1 }
  const mfa_token = world.app.mfaTokens.issue(purpose, subject)
  const factor = purpose === 'sign_in' ? await plantFactor(world, person, { confirmed: true }) : {}
  return { caller: undefined, side, body: { mfa_token, ...factor } }
}

const withCode = (confirmed: boolean) =>
  passing(async (world, _, caller) => ({ body: await plantFactor(world, caller, { confirmed }) }))

const onAnotherHost = (purpose: 'sign_in' | 'enrollment') => ({
  title: "the token of a sign-in to another agency on this one's host",
  status: 403,
  code: 'tenant_mismatch',
  call: async (world: World) => ({ ...(await atSignIn(world, world.b, purpose)), side: world.a })
})

export const mfaPolicies: Record<string, Policy> = {
  getMfa: read('user'),
  startTotp: { access: 'user', status: 200, make: passing() },
  confirmTotp: { access: 'user', status: 200, audited: true, make: withCode(false) },
  removeTotp: {
    access: 'user',
    status: 204,
    audited: true,
    make: withCode(true),
    excesses: [
      {
        title: 'with a code of somebody in another agency',
        status: 401,
        code: 'invalid_credentials',
        call: async (world) => {
          const { code } = await plantFactor(world, await world.plantPerson(world.b, 'member'), { confirmed: true })
          const caller = await world.plantPerson(world.a, 'member')
          await plantFactor(world, caller, { confirmed: true })
          return { caller, side: world.a, body: { code } }
        }
      }
    ]
  },
  renewRecoveryCodes: { access: 'user', status: 200, audited: true, make: withCode(true) },
  completeSignIn: {
    access: 'public',
    status: 200,
    bearer: 'costly',
    audited: true,
    make: (world, side) => atSignIn(world, side, 'sign_in'),
    excesses: [
      onAnotherHost('sign_in'),
      {
        title: 'the access token of somebody',
        status: 401,
        code: 'invalid_mfa_token',
        call: inFirst('owner', ({ a }) => ({
          caller: undefined,
          body: { mfa_token: a.people.owner.token, code: '123456' }
        }))
      }
    ]
  },
  enrollAtSignIn: {
    access: 'public',
    status: 200,
    bearer: 'costly',
    make: (world, side) => atSignIn(world, side, 'enrollment'),
    excesses: [onAnotherHost('enrollment')]
  },
  reauthenticate: {
    access: 'user',
    status: 204,
    audited: true,
    make: withCode(true),
    also: [{ title: 'by the password', call: inFirst('member', () => ({ body: { password } })) }]
  }
}

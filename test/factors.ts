import { Secret, TOTP } from 'otpauth'
import { allRows, type Reply, send, type Tenant, type TestApp, type Tokens } from './harness.ts'
import { decode } from './tokens.ts'

/*
 * An authenticator app, and requests of people who have one.
 */

export const totp = '/api/v1/users/me/mfa/totp'
const period = 30

/** An app that holds one secret. `at` counts the steps from now on. */
export type Authenticator = { secret: string; code(at?: number): string }

export function createAuthenticator(secret: string): Authenticator {
  const app = new TOTP({ secret: Secret.fromBase32(secret), algorithm: 'SHA1', digits: 6, period })
  return { secret, code: (at = 0) => app.generate({ timestamp: Date.now() + at * period * 1000 }) }
}

/**
 * As if a minute had passed: the codes of now are good again. Each code is good once, and a test can't wait for the next
 * step.
 */
export async function forgetUsedCodes(app: Pick<TestApp, 'database'>, userId: string): Promise<void> {
  await allRows(app.database, 'update second_factors set last_step = 0 where user_id = $1', [userId])
}

export type Enrolled = Authenticator & { recovery_codes: string[] }

/** Sets a second factor up, in the session of the token. The codes of now are good. */
export async function enroll(app: TestApp, tenant: Tenant, tokens: Tokens = tenant.owner.tokens): Promise<Enrolled> {
  const started = await tenant.with(tokens.access_token, { method: 'POST', url: totp })
  if (started.statusCode !== 200) throw new Error(`totp: ${started.statusCode} ${started.body}`)
  const authenticator = createAuthenticator(started.json().secret)
  const payload = { code: authenticator.code() }
  const confirmed = await tenant.with(tokens.access_token, { method: 'POST', url: `${totp}/confirm`, payload })
  if (confirmed.statusCode !== 200) throw new Error(`confirm: ${confirmed.statusCode} ${confirmed.body}`)
  await forgetUsedCodes(app, String(decode(tokens.access_token).claims.user_id))
  return { ...authenticator, recovery_codes: confirmed.json().recovery_codes }
}

/** Makes an agency demand a second factor of everybody, for a long time already. */
export async function demandFactor(app: Pick<TestApp, 'database'>, tenantId: string): Promise<void> {
  await allRows(
    app.database,
    `update tenants set settings = settings || '{"mfa_required_from": "2020-01-01T00:00:00.000Z"}' where id = $1`,
    [tenantId]
  )
}

/** Completes a sign-in. */
export const complete = (app: TestApp, mfa_token: string, code: string, host = 'localhost'): Promise<Reply> =>
  send(app, host, { method: 'POST', url: '/api/v1/auth/mfa', payload: { mfa_token, code } })

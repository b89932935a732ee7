import { sql } from 'kysely'
import type { SealedSecret } from '../../../src/auth/stored-secrets.ts'
import type { NoticeKind } from '../../../src/mail/notices.ts'
import { queryIn, type TenantTransaction } from '../../gate/gate.ts'
import { statement } from '../../gate/statement.ts'
import { queueNotice } from '../accounts/mails.ts'

/*
 * The second factors of the gate's user: an authenticator app and recovery codes. Passkeys are in passkeys.ts. All
 * statements call functions that `aggios_directory` owns: the server has no right to the table.
 */

/**
 * A person, with the factors that are stored for them. `id` is null when there is none, not even an unconfirmed one.
 * `secret` is that of the authenticator app, `confirmed` or not; it is empty for somebody who has passkeys only.
 */
export type FactorRow = {
  email: string
  name: string
  password_version: number
  disabled_at: Date | null
  id: string | null
  secret: Buffer
  key_id: string
  last_step: number
  failures: number
  confirmed: boolean
  recovery_codes: Buffer[]
  /** How many passkeys the person has. */
  passkeys: number
}

/** Reads what is needed to check a code. No row when there is no such person. */
export const myFactors = statement(
  'my_factors',
  (_, __: Record<never, never>) => sql<FactorRow>`
  select email, name, password_version, disabled_at, id, secret, key_id, last_step::float8 as last_step, failures, confirmed,
    recovery_codes, passkeys
  from my_factors()`
)

/** Factors that sign-in asks for. A recovery code replaces each of them. */
export type FactorKind = 'totp' | 'passkey'

/** The factors that sign-in asks for. Empty: the person has none. */
export const factorsOf = ({ confirmed, passkeys }: Pick<FactorRow, 'confirmed' | 'passkeys'>): FactorKind[] => [
  ...(confirmed ? (['totp'] as const) : []),
  ...(passkeys > 0 ? (['passkey'] as const) : [])
]

/**
 * A stored factor as sign-in may use it: without a secret that waits for its first code, which proves nothing yet.
 */
export const usableFactor = <T extends FactorRow>(row: T): T =>
  row.confirmed ? row : { ...row, secret: Buffer.alloc(0) }

/** Whether a user, who is the gate's own or a member of its tenant, has a factor. */
export async function hasFactor(trx: TenantTransaction, userId: string): Promise<boolean> {
  const found = await trx
    .selectFrom('users')
    .where('id', '=', userId)
    .where('mfa_enabled_at', 'is not', null)
    .select('id')
    .executeTakeFirst()
  return found !== undefined
}

export const countFactorFailure = statement(
  'count_my_factor_failure',
  (_, $: { id: string }) => sql<{ done: unknown }>`select count_my_factor_failure(${$.id}) as done`,
  { writes: true }
)

export const factorKeysInUse = statement(
  'factor_keys_in_use',
  (_, __: Record<never, never>) => sql<{ id: string }>`select id from factor_keys_in_use() as id`
)

/** Keeps a secret until it is confirmed. Resolves to false when there is a confirmed factor, which stays. */
export async function startFactor(trx: TenantTransaction, factor: SealedSecret & { id: string }): Promise<boolean> {
  const { rows } = await sql<{ started: boolean }>`
    select start_my_factor(${factor.id}, ${factor.secret}, ${factor.key_id}) as started`.execute(trx)
  return rows[0]?.started ?? false
}

/** A code that was checked and is not used up yet: of a time step, or a recovery code by its digest. */
export type FactorProof = {
  id: string
  step: number | null
  recovery: Buffer | null
  /** The secret encrypted with the newest key, if the stored one is not. */
  renewed: SealedSecret | null
}

const useMyFactor = statement(
  'use_my_factor',
  (
    _,
    $: {
      id: string
      step: number | null
      recovery: Buffer | null
      token: string | null
      secret: Buffer | null
      key_id: string | null
    }
  ) => sql<{ at: Date | null }>`
  select use_my_factor(${$.id}, ${$.step}::bigint, ${$.recovery}, ${$.token}, ${$.secret}, ${$.key_id}) as at`,
  { writes: true }
)

/**
 * Uses a code up, and with it the token of a sign-in if there is one. Resolves to the moment, or to undefined when the
 * code or the token was used before: of callers with one code, in whichever processes, one succeeds.
 */
export async function useFactor(
  trx: TenantTransaction,
  { id, step, recovery, renewed }: FactorProof,
  { actor_id, session_id, token }: { actor_id: string; session_id?: string; token?: string }
): Promise<Date | undefined> {
  const { secret, key_id } = renewed ?? { secret: null, key_id: null }
  const [used] = await queryIn(trx, useMyFactor, { id, step, recovery, token: token ?? null, secret, key_id })
  if (!used?.at) return undefined
  if (recovery) await recordFactorChange(trx, { action: 'user.recovery_code_used', actor_id, session_id })
  return used.at
}

export type Change = { actor_id: string | null; session_id?: string | undefined; token_seconds: number }

/**
 * Confirms a pending factor and ends every session but `session_id`, because they were opened without it. Resolves to the
 * moment, or to undefined when the pending factor is another one by now, or none.
 */
export async function enableFactor(
  trx: TenantTransaction,
  factor: { id: string; step: number; recovery_codes: Buffer[] },
  { actor_id, session_id, token_seconds }: Change
): Promise<Date | undefined> {
  const { id, step, recovery_codes } = factor
  const { rows } = await sql<{ at: Date | null }>`
    select confirm_my_factor(${id}, ${step}::bigint, ${recovery_codes}::bytea[]) as at`.execute(trx)
  const at = rows[0]?.at
  if (!at) return undefined
  await endOtherSessions(trx, session_id, token_seconds)
  await recordFactorChange(trx, { action: 'user.mfa_enabled', actor_id, session_id })
  return at
}

/** Replaces the recovery codes. Resolves to false when there is no such factor. */
export async function renewRecoveryCodes(
  trx: TenantTransaction,
  factor: { id: string; recovery_codes: Buffer[] },
  { actor_id, session_id }: Omit<Change, 'token_seconds'>
): Promise<boolean> {
  const { rows } = await sql<{ renewed: boolean }>`
    select renew_my_recovery_codes(${factor.id}, ${factor.recovery_codes}::bytea[]) as renewed`.execute(trx)
  if (!rows[0]?.renewed) return false
  await recordFactorChange(trx, { action: 'user.recovery_codes_renewed', actor_id, session_id })
  return true
}

/**
 * Removes the authenticator app of the gate's user and ends every session but `session_id`. Passkeys stay, and the recovery
 * codes with them. Resolves to false when there is no confirmed app.
 */
export async function removeTotp(
  trx: TenantTransaction,
  { actor_id, session_id, token_seconds }: Change
): Promise<boolean> {
  const { rows } = await sql<{ passkeys: number | null }>`select remove_my_totp() as passkeys`.execute(trx)
  const passkeys = rows[0]?.passkeys ?? null
  if (passkeys === null) return false
  await endOtherSessions(trx, session_id, token_seconds)
  const event = { action: 'user.mfa_removed', actor_id, session_id } as const
  await recordFactorChange(
    trx,
    passkeys === 0 ? event : { ...event, detail: { factor: 'totp' }, notice: 'totp_removed' }
  )
  return true
}

/**
 * Removes all factors of the gate's user, passkeys too, and ends every session but `session_id`. Resolves to false when
 * there is none. An operator acts in the scope of the person, with null as `actor_id`.
 */
export async function removeFactors(
  trx: TenantTransaction,
  { actor_id, session_id, token_seconds }: Change
): Promise<boolean> {
  const { rows } = await sql<{ removed: boolean }>`select remove_my_factor() as removed`.execute(trx)
  if (!rows[0]?.removed) return false
  await endOtherSessions(trx, session_id, token_seconds)
  await recordFactorChange(trx, { action: 'user.mfa_removed', actor_id, session_id })
  return true
}

const notices = {
  'user.mfa_enabled': 'factor_enabled',
  'user.mfa_removed': 'factor_removed',
  'user.recovery_codes_renewed': 'recovery_codes_renewed',
  'user.recovery_code_used': 'recovery_code_used',
  'user.passkey_added': 'passkey_added',
  'user.passkey_removed': 'passkey_removed',
  'user.passkey_refused': 'passkey_refused'
} as const
type FactorEvent = {
  action: keyof typeof notices
  actor_id: string | null
  session_id?: string | undefined
  detail?: object
  /** Another notice than the usual one. */
  notice?: NoticeKind
}

/**
 * Records what has happened to the factors, in the audit log of each agency of the person, and queues a mail that tells
 * the person. Every change passes here, in its transaction.
 */
export async function recordFactorChange(
  trx: TenantTransaction,
  { action, actor_id, session_id, detail, notice = notices[action] }: FactorEvent
): Promise<void> {
  const about = detail === undefined ? null : JSON.stringify(detail)
  await sql`select record_my_factor_change(${action}, ${actor_id}, ${session_id ?? null}, ${about}::jsonb)`.execute(trx)
  await queueNotice(trx, notice)
}

export async function endOtherSessions(
  trx: TenantTransaction,
  keep: string | undefined,
  tokenSeconds: number
): Promise<void> {
  await sql`select end_my_sessions(null, ${keep ?? null}, make_interval(secs => ${tokenSeconds}))`.execute(trx)
}

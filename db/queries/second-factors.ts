import { sql } from 'kysely'
import type { SealedSecret } from '../../src/auth/stored-secrets.ts'
import { queryIn, type TenantTransaction } from '../gate/gate.ts'
import { statement } from '../gate/statement.ts'
import { queueNotice } from './accounts/mails.ts'

/*
 * The second factor of the gate's user. All statements call functions that `aggios_directory` owns: the server has no
 * right to the table.
 */

/** A person, with the factor that is stored for them. `id` is null when there is none, not even an unconfirmed one. */
export type FactorRow = {
  email: string
  password_version: number
  disabled_at: Date | null
  id: string | null
  secret: Buffer
  key_id: string
  last_step: number
  failures: number
  confirmed: boolean
  recovery_codes: Buffer[]
}

/** Reads what is needed to check a code. No row when there is no such person. */
export const myFactor = statement(
  'my_factor',
  (_, __: Record<never, never>) => sql<FactorRow>`
  select email, password_version, disabled_at, id, secret, key_id, last_step::float8 as last_step, failures, confirmed,
    recovery_codes
  from my_factor()`
)

/** Whether a user, who is the gate's own or a member of its tenant, has a confirmed factor. */
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

type Change = { actor_id: string | null; session_id?: string | undefined; token_seconds: number }

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
 * Removes the factor of the gate's user and ends every session but `session_id`. Resolves to false when there is none.
 * An operator acts in the scope of the person, with null as `actor_id`.
 */
export async function removeFactor(
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
  'user.recovery_code_used': 'recovery_code_used'
} as const
type FactorEvent = keyof typeof notices

/**
 * Records what has happened to the factor, in the audit log of each agency of the person, and queues a mail that tells
 * the person. Every change passes here, in its transaction.
 */
async function recordFactorChange(
  trx: TenantTransaction,
  { action, actor_id, session_id }: { action: FactorEvent; actor_id: string | null; session_id?: string | undefined }
): Promise<void> {
  await sql`select record_my_factor_change(${action}, ${actor_id}, ${session_id ?? null})`.execute(trx)
  await queueNotice(trx, notices[action])
}

async function endOtherSessions(trx: TenantTransaction, keep: string | undefined, tokenSeconds: number): Promise<void> {
  await sql`select end_my_sessions(null, ${keep ?? null}, make_interval(secs => ${tokenSeconds}))`.execute(trx)
}

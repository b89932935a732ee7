import { sql } from 'kysely'
import type { VerifiedAssertion, VerifiedPasskey } from '../../../src/auth/passkeys/ceremonies.ts'
import { queryIn, type TenantTransaction } from '../../gate/gate.ts'
import { statement } from '../../gate/statement.ts'
import { type Change, endOtherSessions, recordFactorChange } from './second-factors.ts'

/*
 * Passkeys. All statements call functions that `aggios_directory` owns: the server has no right to the table
 * (db/migrations/0020_passkeys.ts).
 */

/** As many passkeys as a person may have. */
export const maxPasskeys = 20

export type PasskeyRow = {
  id: string
  credential_id: Buffer
  public_key: Buffer
  transports: string[]
  device_type: 'single_device' | 'multi_device'
  backed_up: boolean
  name: string
  created_at: Date
  last_used_at: Date | null
}

/** What is needed to check an assertion of a passkey. */
export type StoredPasskey = Pick<PasskeyRow, 'id' | 'credential_id' | 'public_key' | 'transports'>

/** The passkeys of the gate's user, the oldest first. */
export const myPasskeys = statement(
  'my_passkeys',
  (_, __: Record<never, never>) => sql<PasskeyRow>`
  select id, credential_id, public_key, transports, device_type, backed_up, name, created_at, last_used_at
  from my_passkeys()`
)

export type PasskeyOwner = StoredPasskey & { user_id: string; email: string; password_version: number }

/** Finds a passkey with its person. No row when nobody has it. */
export const findPasskey = statement(
  'find_passkey',
  (_, $: { credential_id: Buffer }) => sql<PasskeyOwner>`
  select id, user_id, email, password_version, credential_id, public_key, transports
  from find_passkey(${$.credential_id})`
)

/** A passkey that was verified, with the challenge that it was made for. */
export type NewPasskey = VerifiedPasskey & { id: string; name: string; challenge_id: string }

type Addition = { outcome: 'added' | 'added_with_codes'; at: Date } | { outcome: 'used' | 'full' | 'taken'; at: null }

/**
 * Stores a passkey of the gate's user and ends every session but `session_id`, because they were opened without it.
 * `recovery` is for somebody who has no recovery codes yet (`added_with_codes`).
 *
 * After another outcome the caller must roll back: the challenge was `used` before, the person has as many passkeys as
 * allowed (`full`), or somebody has this passkey already (`taken`).
 */
export async function addPasskey(
  trx: TenantTransaction,
  passkey: NewPasskey,
  recovery: { factor_id: string; codes: Buffer[] },
  { actor_id, session_id, token_seconds }: Change
): Promise<Addition> {
  const { id, challenge_id, credential_id, public_key, counter, transports, device_type, backed_up, name } = passkey
  const { rows } = await sql<Addition>`
    select outcome, at from add_my_passkey(${recovery.factor_id}, ${challenge_id}, ${id}, ${credential_id}, ${public_key},
      ${counter}::bigint, ${transports}::text[], ${device_type}, ${backed_up}, ${name}, ${recovery.codes}::bytea[],
      ${maxPasskeys}::integer)`.execute(trx)
  const added = rows[0] as Addition
  if (added.at) {
    await endOtherSessions(trx, session_id, token_seconds)
    await recordFactorChange(trx, { action: 'user.passkey_added', actor_id, session_id, detail: { passkey_id: id } })
  }
  return added
}

/** An assertion that was verified and is not used up yet. */
export type PasskeyProof = VerifiedAssertion & { passkey_id: string; challenge_id: string }

const useMyPasskey = statement(
  'use_my_passkey',
  (_, $: PasskeyProof) => sql<{ outcome: 'proved' | 'used' | 'cloned' | 'unknown'; at: Date | null }>`
  select outcome, at
  from use_my_passkey(${$.passkey_id}, ${$.challenge_id}, ${$.counter}::bigint, ${$.backed_up}::boolean)`,
  { writes: true }
)

/**
 * Uses a challenge up by an assertion of a passkey of the gate's user. Resolves to the moment, or to undefined when the
 * challenge was used before, or the passkey is gone: of callers with one challenge, in whichever processes, one succeeds.
 *
 * A counter that has not grown means that somebody has a copy of the passkey. That is refused and audited.
 */
export async function usePasskey(
  trx: TenantTransaction,
  proof: PasskeyProof,
  { actor_id, session_id }: { actor_id: string; session_id?: string }
): Promise<Date | undefined> {
  const [used] = await queryIn(trx, useMyPasskey, proof)
  if (used?.outcome === 'cloned') {
    const detail = { passkey_id: proof.passkey_id, reason: 'counter' }
    await recordFactorChange(trx, { action: 'user.passkey_refused', actor_id, session_id, detail })
  }
  return used?.at ?? undefined
}

/** Resolves to false when the gate's user has no such passkey. */
export async function renamePasskey(trx: TenantTransaction, id: string, name: string): Promise<boolean> {
  const { rows } = await sql<{ renamed: boolean }>`select rename_my_passkey(${id}, ${name}) as renamed`.execute(trx)
  return rows[0]?.renamed ?? false
}

/**
 * Removes a passkey of the gate's user and ends every session but `session_id`. The last factor takes the recovery codes
 * with it. `last`: it stays, because it is the only way in.
 */
export async function removePasskey(
  trx: TenantTransaction,
  id: string,
  { actor_id, session_id, token_seconds }: Change
): Promise<'removed' | 'last' | 'unknown'> {
  const { rows } = await sql<{ outcome: 'removed' | 'last' | 'unknown' }>`
    select remove_my_passkey(${id}) as outcome`.execute(trx)
  const { outcome } = rows[0] as { outcome: 'removed' | 'last' | 'unknown' }
  if (outcome !== 'removed') return outcome
  await endOtherSessions(trx, session_id, token_seconds)
  await recordFactorChange(trx, { action: 'user.passkey_removed', actor_id, session_id, detail: { passkey_id: id } })
  return outcome
}

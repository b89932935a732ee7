import { sql } from 'kysely'
import type { InvitableRole } from '../../../src/auth/roles.ts'
import type { TenantTransaction } from '../../gate/gate.ts'
import { statement } from '../../gate/statement.ts'
import { inviterMayInvite } from '../members.ts'

export type OpenInvitation = { email: string; role: InvitableRole; good: boolean; suspended: boolean }

/**
 * Finds the invitation of a token. `good`: the token is the newest, unused and not expired, and its sender may still
 * invite.
 */
export const findInvitation = statement(
  'find_invitation',
  (_, $: { tenant_id: string; id: string; generation: number }) => sql<OpenInvitation>`
  select i.email, i.role, i.accepted_at is null and i.expires_at > now() and i.generation = ${$.generation}
      and ${inviterMayInvite('i')} as good,
    t.status = 'suspended' as suspended
  from invitations i join tenants t on t.id = i.tenant_id
  where i.tenant_id = ${$.tenant_id} and i.id = ${$.id}`
)

/** Marks the invitation as accepted. False when another request was faster, or the invitation is no longer valid. */
export async function useInvitation(
  trx: TenantTransaction,
  { id, generation }: { id: string; generation: number }
): Promise<boolean> {
  const used = await trx
    .updateTable('invitations')
    .set({ accepted_at: sql`now()` })
    .where('id', '=', id)
    .where('generation', '=', generation)
    .where('accepted_at', 'is', null)
    .where('expires_at', '>', sql<Date>`now()`)
    .where(inviterMayInvite('invitations'))
    .returning('id')
    .executeTakeFirst()
  return used !== undefined
}

/** Takes the address from an account that never verified it. Resolves to the id of that account, if there is one. */
export async function releaseAddress(trx: TenantTransaction, email: string): Promise<string | undefined> {
  const { rows } = await sql<{ id: string | null }>`select release_address(${email}) as id`.execute(trx)
  return rows[0]?.id ?? undefined
}

import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { statement } from '../../db/gate/statement.ts'
import { inviterMayInvite } from '../../db/queries/members.ts'
import type { InvitableRole } from '../../src/auth/roles.ts'

const columns = ['id', 'email', 'role', 'invited_by', 'created_at', 'expires_at'] as const

type Row = {
  id: string
  email: string
  role: InvitableRole
  invited_by: string
  created_at: Date
  expires_at: Date
  valid: boolean
  delivery: 'queued' | 'sent' | 'failed' | 'unknown'
}

/** Lists the open invitations, the newest first. */
export const listInvitations = statement(
  'list_invitations',
  (_, $: { tenant_id: string; after_id: string; limit: number }) => sql<Row>`
  select i.id, i.email, i.role, i.invited_by, i.created_at, i.expires_at,
    i.expires_at > now() and ${inviterMayInvite('i')} as valid,
    case
      when o.id is null then 'unknown'
      when o.sent_at is not null then 'sent'
      when o.dropped_at is not null then 'failed'
      else 'queued'
    end as delivery
  from invitations i
  left join outbox o
    on o.tenant_id = i.tenant_id and o.kind = 'invitation' and o.subject_id = i.id and o.generation = i.generation
  where i.tenant_id = ${$.tenant_id} and i.accepted_at is null and i.id < ${$.after_id}
  order by i.id desc limit ${$.limit}`,
  { slow: true }
)

export function isMember(trx: TenantTransaction, email: string) {
  return trx
    .selectFrom('memberships as m')
    .innerJoin('users as u', 'u.id', 'm.user_id')
    .where('u.email', '=', email)
    .select('m.user_id')
    .executeTakeFirst()
}

/**
 * Inserts an invitation. Resolves to undefined when the address already has a valid one. An invalid invitation is
 * replaced under a new generation, so that its old token stays invalid.
 */
export function insertInvitation(
  trx: TenantTransaction,
  invitation: { id: string; email: string; role: InvitableRole }
) {
  return trx
    .insertInto('invitations')
    .values(invitation)
    .onConflict((conflict) =>
      conflict
        .columns(['tenant_id', 'email'])
        .where('accepted_at', 'is', null)
        .doUpdateSet({
          role: invitation.role,
          invited_by: sql`current_user_id()`,
          generation: sql`invitations.generation + 1`,
          created_at: sql`now()`,
          expires_at: sql`now() + interval '7 days'`
        })
        .where(sql<boolean>`(invitations.expires_at <= now() or not ${inviterMayInvite('invitations')})`)
    )
    .returning([...columns, 'generation'])
    .executeTakeFirst()
}

/**
 * Renews an open invitation for a week, in the name of the current user. The new generation makes the previous token
 * invalid.
 */
export function renewInvitation(trx: TenantTransaction, id: string) {
  return trx
    .updateTable('invitations')
    .set({
      generation: sql`generation + 1`,
      invited_by: sql`current_user_id()`,
      expires_at: sql`now() + interval '7 days'`
    })
    .where('id', '=', id)
    .where('accepted_at', 'is', null)
    .returning(['id', 'email', 'generation'])
    .executeTakeFirst()
}

export function deleteInvitation(trx: TenantTransaction, id: string) {
  return trx
    .deleteFrom('invitations')
    .where('id', '=', id)
    .where('accepted_at', 'is', null)
    .returning(['id', 'email', 'role'])
    .executeTakeFirst()
}

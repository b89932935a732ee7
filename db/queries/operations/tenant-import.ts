import { sql } from 'kysely'
import type { Role } from '../../../src/auth/roles.ts'
import { foldText } from '../../../src/files/file-names.ts'
import { inScope, type TenantGate, type TenantTransaction } from '../../gate/gate.ts'
import { recordAudit } from '../audit.ts'
import { recountStorage } from '../files.ts'

/*
 * Makes an agency from its export, behind the gate of that agency. Ids stay. No account of this installation is changed.
 */

export type ExportedMember = { user_id: string; email: string; name: string; role: Role; joined_at: string }
export type ExportedInvitation = {
  id: string
  email: string
  role: Exclude<Role, 'owner'>
  invited_by: string
  created_at: string
  expires_at: string
  accepted_at: string | null
}
export type ExportedFile = {
  id: string
  name: string
  purpose: string | null
  content_type: string
  size: number
  sha256: string
  created_by: string | null
  created_at: string
  status: 'ready' | 'deleted'
}
export type ExportedAgency = {
  tenant: { id: string; slug: string; name: string; settings: object; created_at: string }
  members: ExportedMember[]
  invitations: ExportedInvitation[]
  files: ExportedFile[]
  domains: { name: string; created_at: string }[]
}

export type ImportOutcome = {
  /** People who had an account here and are members now; those who got one; those who have an invitation instead. */
  members: { joined: number; created: number; invited: string[] }
  files: number
  invitations: number
}

/** The agency can't be imported. The message says why. */
export class Unimportable extends Error {}

/** Imports the agency in one transaction, under the address `slug`. `source` names the export in the audit log. Rejects with Unimportable. */
export function importAgency(
  gate: TenantGate,
  { tenant, members, invitations, files, domains }: ExportedAgency,
  { slug, source }: { slug: string; source: string }
): Promise<ImportOutcome> {
  const own = { tenant_id: tenant.id, user_id: null }
  return gate.transaction({ ...own, request: '' }, async (trx) => {
    await insertAgency(trx, { ...tenant, slug })
    const people = await joinPeople(trx, own, members)
    const owner = members.find(({ user_id, role }) => role === 'owner' && people.ids.has(user_id))
    if (!owner)
      throw new Unimportable('no owner would be left: their address here is not verified, or their account is disabled')
    const ownerId = people.ids.get(owner.user_id) as string

    const open = invitations.filter(({ accepted_at, email }) => accepted_at === null && !people.invited.includes(email))
    for (const invitation of open) {
      await insertInvitation(trx, { ...invitation, invited_by: people.ids.get(invitation.invited_by) ?? ownerId })
    }
    for (const member of members.filter(({ email }) => people.invited.includes(email))) {
      const role = member.role === 'owner' ? 'admin' : member.role
      const now = new Date().toISOString()
      await insertInvitation(trx, {
        id: member.user_id,
        email: member.email,
        role,
        invited_by: ownerId,
        created_at: now
      })
    }
    const kept = files.filter(({ status }) => status === 'ready')
    await recountStorage(trx, tenant.id)
    const rows = kept.map((file) => ({
      ...file,
      folded_name: foldText(file.name),
      sha256: `\\x${file.sha256}`,
      created_by: file.created_by && (people.ids.get(file.created_by) ?? file.created_by)
    }))
    await sql`
      insert into files (id, status, name, folded_name, purpose, content_type, size, sha256, created_by, created_at)
      select id, status, name, folded_name, purpose, content_type, size, sha256, created_by, created_at
      from jsonb_populate_recordset(null::files, ${JSON.stringify(rows)}::jsonb)`.execute(trx)
    await recountStorage(trx, tenant.id)
    for (const { name, created_at } of domains) {
      await sql`insert into tenant_domains (name, created_at) values (${name}, ${created_at})`.execute(trx)
    }
    await recordAudit(trx, {
      action: 'tenant.imported',
      actor_id: null,
      target_id: tenant.id,
      detail: { export: source, by: 'operator' }
    })
    return {
      members: { joined: people.joined, created: people.created, invited: people.invited },
      files: kept.length,
      invitations: open.length
    }
  })
}

async function insertAgency(trx: TenantTransaction, tenant: ExportedAgency['tenant']): Promise<void> {
  const { id, slug, name, settings, created_at } = tenant
  await sql`
    insert into tenants (id, slug, name, settings, created_at)
    values (${id}, ${slug}, ${name}, ${JSON.stringify(settings)}::jsonb, ${created_at})`
    .execute(trx)
    .catch((err) => {
      if (err.constraint === 'tenants_pkey') throw new Unimportable('the agency is here already')
      if (err.constraint === 'tenants_slug_key')
        throw new Unimportable(`the address ${slug} is taken: name another with --slug`)
      throw err
    })
}

type Account = { id: string; email: string; verified: boolean; disabled: boolean }

/**
 * Makes members of people. An account with the same address becomes the member if its address is verified, because only
 * then it is known to be the same person. Without one, an account is made, without a password: who reads the mailbox sets
 * it. All others are to be invited.
 */
async function joinPeople(
  trx: TenantTransaction,
  own: { tenant_id: string; user_id: null },
  members: ExportedMember[]
) {
  const accounts = await findAccounts(trx, members)
  const byEmail = new Map(accounts.map((account) => [account.email, account]))
  const taken = new Set(accounts.map(({ id }) => id))
  const ids = new Map<string, string>()
  const outcome = { ids, joined: 0, created: 0, invited: [] as string[] }
  for (const { user_id, email, name, role, joined_at } of members) {
    const account = byEmail.get(email)
    if (account ? !account.verified || account.disabled : taken.has(user_id)) {
      outcome.invited.push(email)
      continue
    }
    const id = account?.id ?? user_id
    await inScope(trx, { ...own, user_id: id }, own, async () => {
      if (!account) await sql`insert into users (id, email, name) values (${id}, ${email}, ${name})`.execute(trx)
      await sql`
        insert into memberships (user_id, role, joined_at, last_used_at) values (${id}, ${role}, ${joined_at}, now())`.execute(
        trx
      )
    })
    ids.set(user_id, id)
    outcome[account ? 'joined' : 'created']++
  }
  return outcome
}

/** The accounts that have the address or the id of one of these people. Only the directory sees people of all agencies. */
async function findAccounts(trx: TenantTransaction, members: ExportedMember[]): Promise<Account[]> {
  const [emails, ids] = [members.map(({ email }) => email), members.map(({ user_id }) => user_id)]
  await sql`set local role aggios_directory`.execute(trx)
  const { rows } = await sql<Account>`
    select id, email, email_verified_at is not null as verified, disabled_at is not null as disabled from users
    where email = any (${emails}) or id = any (${ids}::uuid[])`.execute(trx)
  await sql`reset role`.execute(trx)
  return rows
}

/** Its link was never mailed from here, so it is not good before an admin has sent it. */
function insertInvitation(
  trx: TenantTransaction,
  invitation: Omit<ExportedInvitation, 'expires_at' | 'accepted_at'> & { expires_at?: string }
): Promise<unknown> {
  const { id, email, role, invited_by, created_at, expires_at } = invitation
  return sql`
    insert into invitations (id, email, role, invited_by, created_at, expires_at)
    values (${id}, ${email}, ${role}, ${invited_by}, ${created_at},
      coalesce(${expires_at ?? null}::timestamptz, now() + interval '7 days'))`.execute(trx)
}

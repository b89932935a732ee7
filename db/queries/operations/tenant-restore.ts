import { type RawBuilder, sql } from 'kysely'
import type { Role } from '../../../src/auth/roles.ts'
import { inScope, type TenantGate, type TenantTransaction } from '../../gate/gate.ts'
import { recordAudit } from '../audit.ts'
import { recountStorage } from '../files.ts'
import { deleteMember } from '../members.ts'
import { endMemberSessions, publishMember } from '../revocations.ts'
import { changeTenant } from '../tenant-status.ts'

/*
 * Restores one agency from a copy of the database of an earlier time, while the others go on.
 *
 * Both databases are reached through the gate, set to this agency. So row security itself keeps every other agency out of it, also from
 * the owner of the tables. Restored are the agency, its members, invitations, files, domains, providers and webhooks. People, their passwords and
 * sessions, and the audit log belong to the present: they stay as they are.
 */

export type AgencyCopy = {
  tenant: Row
  members: Row[]
  invitations: Row[]
  files: Row[]
  domains: Row[]
  providers: Row[]
  webhooks: Row[]
}
/** A row as JSON text, which keeps what JavaScript's numbers and dates would round. */
type Row = { id: string; json: string }

export type RestoreOutcome = {
  members: { added: number; changed: number; removed: number; without_account: number }
  files: { restored: number; set_aside: number }
  invitations: number
}

/** The agency can't be restored. The message says why. */
export class Unrestorable extends Error {}

/** Reads everything of the agency that a restore brings back. Undefined when the database does not have it. */
export function readAgency(source: TenantGate, tenantId: string): Promise<AgencyCopy | undefined> {
  return source.transaction({ tenant_id: tenantId, user_id: null, request: '' }, async (trx) => {
    const rowsOf = async (table: string, id: string, condition = sql`true`) => {
      const { rows } = await sql<Row>`
        select ${sql.ref(id)}::text as id, to_jsonb(t)::text as json from ${sql.table(table)} t
        where ${condition} order by ${sql.ref(id)}`.execute(trx)
      return rows
    }
    const [tenant] = await rowsOf('tenants', 'id', sql`id = ${tenantId}`)
    if (!tenant) return undefined
    return {
      tenant,
      members: await rowsOf('memberships', 'user_id'),
      invitations: await rowsOf('invitations', 'id'),
      files: await rowsOf('files', 'id', sql`status in ('ready', 'deleted')`),
      domains: await rowsOf('tenant_domains', 'name'),
      providers: await rowsOf('identity_providers', 'id'),
      webhooks: await rowsOf('webhook_endpoints', 'id', sql`deleted_at is null`)
    }
  })
}

export type RestoreOptions = {
  /** The time of the copy, for the audit log and for how long deleted files can still be restored. */
  copiedAt: Date
  /** Seconds in which a file that the copy does not have can be restored. */
  restoreForSeconds: number
  tokenSeconds: number
}

/** Brings the agency back to the copy, in one transaction. Rejects with Unrestorable, and then nothing is changed. */
export function restoreAgency(
  target: TenantGate,
  tenantId: string,
  copy: AgencyCopy,
  { copiedAt, restoreForSeconds, tokenSeconds }: RestoreOptions
): Promise<RestoreOutcome> {
  const own = { tenant_id: tenantId, user_id: null }
  return target.transaction({ ...own, request: '' }, async (trx) => {
    await restoreTenantRow(trx, tenantId, copy.tenant)
    // a demand for a provider would refuse changes of its break-glass owners. It comes back with the providers
    await sql`update identity_providers set enforced_from = null where enforced_from is not null`.execute(trx)
    const members = await restoreMembers(trx, own, copy.members, tokenSeconds)
    const files = await restoreFiles(trx, tenantId, copy.files, copiedAt, restoreForSeconds)
    await restoreInvitations(trx, copy.invitations)
    await restoreDomains(trx, copy.domains)
    await removeOthers(trx, 'identity_providers', 'id', copy.providers)
    await upsert(trx, 'identity_providers', ['tenant_id', 'id'], copy.providers)
    await restoreWebhooks(trx, copy.webhooks)
    await recordAudit(trx, {
      action: 'tenant.restored',
      actor_id: null,
      target_id: tenantId,
      detail: { to: copiedAt.toISOString(), by: 'operator' }
    })
    return { members, files, invitations: copy.invitations.length }
  })
}

/** Also brings back an agency that was purged. One that is there keeps its address, its plan and its suspension. */
async function restoreTenantRow(trx: TenantTransaction, tenantId: string, row: Row): Promise<void> {
  const { rows } = await sql`select from tenants where id = ${tenantId} for update`.execute(trx)
  const values = sql`jsonb_populate_record(null::tenants, ${row.json}::jsonb)`
  if (rows.length > 0) {
    // an agency that was deleted by mistake is active again, as an operator's `resume` makes it
    const columns = sql`(name, settings, logo_url, status, purge_at) = (select r.name, r.settings, r.logo_url,
      case when tenants.purge_at is null then tenants.status else r.status end, null::timestamptz from ${values} r)`
    return changeTenant(trx, tenantId, columns)
  }
  await insertRows(trx, 'tenants', [row.json], sql.lit('{"purge_at": null}')).catch((err) => {
    if (err.code === '23505')
      throw new Unrestorable('another agency has its address by now, and must get another one first')
    if (err.code === '23503') throw new Unrestorable('its plan is gone: make it again with npm run plan')
    throw err
  })
  await changeTenant(trx, tenantId, sql`purge_at = null`)
}

async function restoreMembers(
  trx: TenantTransaction,
  own: { tenant_id: string; user_id: null },
  rows: Row[],
  tokenSeconds: number
) {
  const outcome = { added: 0, changed: 0, removed: 0, without_account: 0 }
  const facts = (json: string) => JSON.parse(json) as { role: Role; break_glass: boolean }
  const { rows: present } = await sql<Row>`
    select user_id::text as id, to_jsonb(m)::text as json from memberships m order by user_id for update`.execute(trx)
  const wanted = new Set(rows.map(({ id }) => id))
  const before = new Map(present.map(({ id, json }) => [id, facts(json)]))
  for (const { id } of present) {
    if (wanted.has(id)) continue
    // if they return in the same role, old tokens must not become valid again
    await endMemberSessions(trx, id, tokenSeconds)
    await deleteMember(trx, id)
    await publishMember(trx, id, null, tokenSeconds)
    outcome.removed++
  }
  for (const { id, json } of rows) {
    const { role, break_glass } = facts(json)
    const now = before.get(id)
    if (now?.role === role && now.break_glass === break_glass) continue
    if (now) {
      await sql`update memberships set role = ${role}, break_glass = ${break_glass}, version = version + 1, updated_at = now()
        where user_id = ${id}`.execute(trx)
      outcome.changed++
    } else {
      // nobody becomes a member of an agency without being who they are: the policy asks for it
      const isThere = await inScope(trx, { ...own, user_id: id }, own, async () => {
        const { rows: account } = await sql`select from users where id = ${id}`.execute(trx)
        if (account.length > 0) await insertRows(trx, 'memberships', [json], noChange)
        return account.length > 0
      })
      if (isThere) outcome.added++
      else {
        outcome.without_account++
        continue
      }
    }
    await publishMember(trx, id, role, tokenSeconds)
  }
  const { rows: owners } = await sql`select from memberships where role = 'owner' limit 1`.execute(trx)
  if (owners.length === 0) throw new Unrestorable('none of its owners of that time has an account any more')
  return outcome
}

/** Files of later are set aside as deleted ones, so that their people can bring them back. */
async function restoreFiles(
  trx: TenantTransaction,
  tenantId: string,
  rows: Row[],
  copiedAt: Date,
  restoreForSeconds: number
) {
  await recountStorage(trx, tenantId)
  const ids = rows.map(({ id }) => id)
  const aside = await sql`
    update files set status = 'deleted', expires_at = now() + make_interval(secs => ${restoreForSeconds})
    where tenant_id = ${tenantId} and status = 'ready' and id <> all (${ids}::uuid[])`.execute(trx)
  await upsert(trx, 'files', ['tenant_id', 'id'], rows)
  // what was deleted at that time can be restored for as long as it could then
  await sql`
    update files set expires_at = expires_at + (now() - ${copiedAt.toISOString()}::timestamptz)
    where tenant_id = ${tenantId} and status = 'deleted' and id = any (${ids}::uuid[])`.execute(trx)
  await recountStorage(trx, tenantId)
  return { restored: rows.length, set_aside: Number(aside.numAffectedRows ?? 0) }
}

/** Links that were mailed for an invitation are dead: it may have been withdrawn since. Admins send it again. */
async function restoreInvitations(trx: TenantTransaction, rows: Row[]): Promise<void> {
  const { rows: present } = await sql<{ id: string; generation: number }>`
    select id::text as id, generation::float8 as generation from invitations`.execute(trx)
  const generations = new Map(present.map(({ id, generation }) => [id, generation]))
  await sql`delete from invitations`.execute(trx)
  const renewed = rows.map(({ id, json }) => {
    const { generation } = JSON.parse(json) as { generation: number }
    return { id, json: withMember(json, 'generation', Math.max(generation, generations.get(id) ?? 0) + 1) }
  })
  await upsert(trx, 'invitations', ['tenant_id', 'id'], renewed)
}

/** A domain that the agency does not have any more must be proven again, because somebody else may have it by now. */
async function restoreDomains(trx: TenantTransaction, rows: Row[]): Promise<void> {
  await removeOthers(trx, 'tenant_domains', 'name', rows)
  const unproven = sql.lit('{"verified_at": null, "checked_at": null, "failures": 0}')
  const { rows: present } = await sql<{ name: string }>`select name from tenant_domains`.execute(trx)
  const names = new Set(present.map(({ name }) => name))
  const gone = rows.filter(({ id }) => !names.has(id)).map(({ json }) => json)
  await insertRows(trx, 'tenant_domains', gone, unproven)
}

/** What was sent, and what waits, belongs to the present. A webhook that the copy does not have is removed as by its owner. */
async function restoreWebhooks(trx: TenantTransaction, rows: Row[]): Promise<void> {
  await sql`
    update webhook_endpoints set deleted_at = coalesce(deleted_at, now()), secret = '', key_id = '', previous_secret = null,
      previous_key_id = null, previous_until = null
    where id::text <> all (${rows.map(({ id }) => id)})`.execute(trx)
  await upsert(trx, 'webhook_endpoints', ['tenant_id', 'id'], rows)
  // a lease of the copy names a process of its time
  await sql`
    update webhook_endpoints set lease = null, busy_until = '-infinity', next_at = now() where deleted_at is null`.execute(
    trx
  )
}

async function removeOthers(trx: TenantTransaction, table: string, id: string, rows: Row[]): Promise<void> {
  await sql`delete from ${sql.table(table)} where ${sql.ref(id)}::text <> all (${rows.map((row) => row.id)})`.execute(
    trx
  )
}

/** Sets a member of a row that is an integer. The text of the others stays as PostgreSQL has written it. */
const withMember = (json: string, name: string, value: number) => json.replace(/\}$/, `, "${name}": ${value}}`)

const batch = 1000
/** The JSON text of no other values. */
const noChange = sql.lit('{}')

/** Inserts rows. `fixed` is the JSON text of the columns that get other values. */
async function insertRows(
  trx: TenantTransaction,
  table: string,
  rows: string[],
  fixed: RawBuilder<unknown>,
  onConflict = sql``
): Promise<void> {
  for (let from = 0; from < rows.length; from += batch) {
    const values = `[${rows.slice(from, from + batch).join(',')}]`
    await sql`
      insert into ${sql.table(table)}
      select r.* from jsonb_array_elements(${values}::jsonb) v(value)
        cross join lateral jsonb_populate_record(null::${sql.table(table)}, v.value || ${fixed}::jsonb) r
      ${onConflict}`.execute(trx)
  }
}

/** Inserts rows, or makes the present ones equal to them. */
async function upsert(trx: TenantTransaction, table: string, key: string[], rows: Row[]): Promise<void> {
  const { rows: columns } = await sql<{ name: string }>`
    select attname as name from pg_attribute
    where attrelid = ${table}::regclass and attnum > 0 and not attisdropped and attname <> all (${key})`.execute(trx)
  const changes = columns.map(({ name }) => sql`${sql.ref(name)} = excluded.${sql.ref(name)}`)
  await insertRows(
    trx,
    table,
    rows.map(({ json }) => json),
    noChange,
    sql`on conflict (${sql.join(key.map((name) => sql.ref(name)))}) do update set ${sql.join(changes)}`
  )
}

import { sha256 } from './bytes.ts'
import type { DatabaseUrls } from './databases.ts'
import { send, type Writer } from './failover-writers.ts'
import { allRows } from './harness.ts'

type Database = Pick<DatabaseUrls, 'postgres'>

/**
 * Compares what the writers were told with the database, and names each broken promise: an acknowledged write that is lost or is
 * there twice, one that nobody asked for, and one that is half done.
 */
export async function judgeWriters(database: Database, urls: string[], writers: Writer[]): Promise<string[]> {
  const verdicts: string[] = []
  for (const [index, writer] of writers.entries()) {
    const url = urls[index % urls.length] as string
    verdicts.push(
      ...(await judgeNames(database, writer)),
      ...(await judgeInvitations(database, writer)),
      ...(await judgeUploads(database, url, writer)),
      ...(await judgeSession(database, writer)),
      ...(await judgeSignOuts(database, urls, writer))
    )
  }
  return verdicts
}

/** The changes in the audit log must be the acknowledged ones in their order, each based on the one before. */
async function judgeNames(database: Database, { tenant, person, names }: Writer): Promise<string[]> {
  const changes = await allRows(
    database,
    `select detail->'before'->>'name' as before, detail->'after'->>'name' as after from audit_events
     where tenant_id = $1 and action = 'user.updated' order by created_at, id`,
    [tenant]
  )
  const [user] = await allRows(database, 'select name, version from users where id = $1', [person])
  const told = names.slice(1).map((after, index) => ({ before: names[index], after }))
  const verdicts = compare(
    told.map(({ before, after }) => `${before} > ${after}`),
    changes.map(({ before, after }) => `${before} > ${after}`),
    'change of a name'
  )
  if (user?.name !== names.at(-1)) verdicts.push(`the name is ${user?.name}, and ${names.at(-1)} was acknowledged`)
  if (user?.version !== names.length) verdicts.push(`${user?.name}: version ${user?.version} of ${names.length}`)
  return verdicts
}

/** Each value must be on both sides once. */
function compare(told: string[], found: string[], what: string): string[] {
  const left = new Set(told)
  const verdicts: string[] = []
  for (const each of found) if (!left.delete(each)) verdicts.push(`${what}: ${each} is there, unasked or twice`)
  for (const each of left) verdicts.push(`${what}: ${each} was acknowledged and is lost`)
  return verdicts
}

async function judgeInvitations(database: Database, { slug, tenant, invitations }: Writer): Promise<string[]> {
  const rows = await allRows(
    database,
    `select i.id, i.email,
       (select count(*)::int from outbox o where o.tenant_id = $1 and o.subject_id = i.id) as mails,
       (select count(*)::int from audit_events a where a.tenant_id = $1 and a.target_id = i.id
         and a.action = 'invitation.created') as events,
       (select count(*)::int from idempotency_keys k where k.tenant_id = $1 and k.key = i.email
         and k.body::jsonb ->> 'id' = i.id::text) as replies
     from invitations i where i.tenant_id = $1`,
    [tenant]
  )
  const verdicts = compare(
    [...invitations].map(([email, { id }]) => `${email} ${id}`),
    rows.map(({ id, email }) => `${email} ${id}`),
    'invitation'
  )
  for (const { email, mails, events, replies } of rows) {
    if (mails !== 1 || events !== 1 || replies !== 1) {
      verdicts.push(`${email}: ${mails} mails, ${events} rows in the audit log, ${replies} kept replies`)
    }
  }
  const [counts] = await allRows(
    database,
    `select (select count(*)::int from audit_events where tenant_id = $1 and action = 'invitation.created') as events,
       (select count(*)::int from outbox where tenant_id = $1) as mails,
       (select count(*)::int from idempotency_keys where tenant_id = $1) as replies`,
    [tenant]
  )
  for (const [what, count] of Object.entries(counts ?? {})) {
    if (count !== rows.length) verdicts.push(`${slug}: ${count} ${what} for ${rows.length} invitations`)
  }
  return verdicts
}

/** An upload without an answer is there wholly, or not at all. Its bytes may lie in the store until the sweep. */
async function judgeUploads(database: Database, url: string, { slug, tenant, access, uploads }: Writer) {
  const rows = await allRows(
    database,
    `select f.id, f.name, encode(f.sha256, 'hex') as digest,
       (select count(*)::int from audit_events a where a.tenant_id = $1 and a.target_id = f.id
         and a.action = 'file.created') as events
     from files f where f.tenant_id = $1 and f.status = 'ready'`,
    [tenant]
  )
  const verdicts: string[] = []
  const byName = new Map(rows.map((row) => [row.name, row]))
  if (byName.size !== rows.length) verdicts.push(`${slug}: ${rows.length} files have ${byName.size} names`)
  for (const { name, digest, outcome, id } of uploads) {
    const row = byName.get(name)
    byName.delete(name)
    if (!row) {
      if (outcome === 'acknowledged') verdicts.push(`${name} was acknowledged and is lost`)
      continue
    }
    if (row.events !== 1) verdicts.push(`${name}: ${row.events} rows in the audit log`)
    if (row.digest !== digest || (id !== undefined && row.id !== id)) verdicts.push(`${name} is another file`)
    const reply = await fetch(`${url}/api/v1/files/${row.id}/content`, {
      headers: { authorization: `Bearer ${access}` }
    })
    const found = sha256(Buffer.from(await reply.arrayBuffer()))
    if (reply.status !== 200 || found !== digest) verdicts.push(`the bytes of ${name} are not there: ${reply.status}`)
  }
  for (const name of byName.keys()) verdicts.push(`${name} was never asked for`)
  const [counts] = await allRows(
    database,
    `select (select count(*)::int from audit_events where tenant_id = $1 and action = 'file.created') as events,
       (select coalesce(sum(size), 0)::float8 from files where tenant_id = $1) as bytes,
       (select coalesce(sum(bytes), 0)::float8 from storage_usage where tenant_id = $1) as counted`,
    [tenant]
  )
  if (counts?.events !== rows.length) verdicts.push(`${slug}: ${counts?.events} events for ${rows.length} files`)
  if (counts?.bytes !== counts?.counted)
    verdicts.push(`${slug}: ${counts?.counted} of ${counts?.bytes} bytes are counted`)
  return verdicts
}

/** A session was rotated as often as its owner knows, and goes on. */
async function judgeSession(database: Database, { slug, session, rotations }: Writer): Promise<string[]> {
  const [row] = await allRows(database, 'select counter, revoked_at from sessions where id = $1', [session])
  const verdicts: string[] = []
  if (row?.counter !== rotations) verdicts.push(`${slug}: rotated ${row?.counter} times, and told ${rotations}`)
  if (row?.revoked_at) verdicts.push(`${slug} was signed out`)
  return verdicts
}

/** A session that was ended stays so, in every process. */
async function judgeSignOuts(database: Database, urls: string[], { slug, tenant, signOuts }: Writer) {
  const rows = await allRows(
    database,
    `select s.id::text as id, s.revoked_at is not null as ended,
       (select count(*)::int from audit_events a where a.tenant_id = $1 and a.session_id = s.id
         and a.action = 'session.ended') as events
     from sessions s where s.tenant_id = $1`,
    [tenant]
  )
  const verdicts: string[] = []
  const byId = new Map(rows.map((row) => [row.id, row]))
  for (const { session, access, refresh } of signOuts) {
    const row = byId.get(session)
    if (!row?.ended || row.events !== 1) verdicts.push(`${slug}: ${session} is ${JSON.stringify(row)}`)
    for (const url of urls) {
      const read = await send(url, { method: 'GET', path: '/users/me', token: access })
      const renewed = await send(url, { method: 'POST', path: '/auth/refresh', body: { refresh_token: refresh } })
      if (read.status !== 401 || renewed.status !== 401) {
        verdicts.push(`${slug}: a session that was ended gets ${read.status} and ${renewed.status}`)
      }
    }
  }
  return verdicts
}

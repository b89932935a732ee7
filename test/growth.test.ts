import t from 'tap'
import { createMonth } from './audit-log.ts'
import { withClient } from './databases.ts'
import { allRows, createTenant, post, startApp } from './harness.ts'

/*
 * No table grows without end: each has a bound, or a job that removes old rows.
 */

/** What keeps each table small. `swept`: inserts an expired row, which the jobs of every minute must remove. */
const tables: Record<string, { bound: string } | { swept: string; left?: string }> = {
  tenants: { bound: 'the agencies there are; a deleted one is purged' },
  users: { bound: 'the people there are' },
  memberships: { bound: 'the people of each agency' },
  storage_usage: { bound: 'one row an agency' },
  plans: { bound: 'made by the operator' },
  audit_horizon: { bound: 'one row' },
  event_horizon: { bound: 'one row' },
  events: {
    swept: `insert into events (tenant_id, id, created_at, position)
      select $1, gen_random_uuid(), now() - interval '31 days', 0 where $1 <> $2::uuid`,
    left: 'position = 0'
  },
  audit_retention: { bound: 'one row' },
  object_sweep: { bound: 'one row' },
  job_runs: { bound: 'a row for each background job' },
  schema_compatibility: { bound: 'one row' },
  kysely_migration: { bound: 'one row a step of the schema' },
  kysely_migration_lock: { bound: 'one row' },
  audit_statements: { bound: 'a row a month that is dropped, and a few a key' },
  files: { bound: 'the quotas; what is deleted goes with the sweep of objects (file-sweep.test.ts)' },
  account_links: {
    swept: `insert into account_links (user_id, purpose, email, password_version, expires_at)
      select $2, 'reset', 'x@y.example', 1, now() - interval '2 days' where $1::uuid <> $2::uuid`,
    left: "email = 'x@y.example'"
  },
  account_mails: {
    swept: `insert into account_mails (kind, address, created_at, due_at, sent_at)
      select 'reset', 'x@y.example', each.at, each.at, each.sent
      from (values (now() - interval '31 days', now() - interval '31 days'), (now() - interval '2 days', null)) as each (at, sent)
      where $1::uuid <> $2::uuid`,
    left: "address = 'x@y.example'"
  },
  identity_providers: { bound: 'ten an agency: each takes one of ten places' },
  webhook_endpoints: { bound: 'twenty an agency; one that is removed goes with its deliveries' },
  webhook_deliveries: {
    swept: `insert into webhook_deliveries (tenant_id, endpoint_id, cause, event_id, event_type, event_at, position, created_at)
      select $1, $2, 'event', gen_random_uuid(), 'file.created', now(), 1, now() - interval '31 days'`,
    left: "created_at < now() - interval '30 days'"
  },
  webhook_attempts: {
    swept: `with delivery as (
      insert into webhook_deliveries (tenant_id, endpoint_id, cause, event_id, event_type, event_at, position, created_at)
      select $1, $2, 'event', gen_random_uuid(), 'file.created', now(), 1, now() - interval '31 days' returning tenant_id, id)
      insert into webhook_attempts (tenant_id, delivery_id, number, started_at, duration_ms)
      select tenant_id, id, 1, now(), 1 from delivery`
  },
  api_keys: { bound: 'a hundred an agency: more are refused, and one that ends has no row' },
  tenant_domains: { bound: 'the domains that an agency has proven, or tries to' },
  user_identities: { bound: 'twenty a person, and one at each provider of an agency; a row goes with its person' },
  one_time_marks: {
    swept: `insert into one_time_marks (id, expires_at)
      select gen_random_uuid(), now() - interval '1 minute' where $1::uuid <> $2::uuid`,
    left: 'expires_at < now()'
  },
  second_factors: { bound: 'the people there are; a row goes with its person' },
  passkeys: { bound: 'twenty for each person; they go with their person' },
  sign_in_failures: {
    swept: `insert into sign_in_failures (email, failed_at)
      select 'x@y.example', now() - interval '1 year' where $1::uuid <> $2::uuid`,
    left: "failed_at < now() - interval '300 days'"
  },
  upload_pieces: { bound: 'the quotas; they go with their upload' },
  uploads: { bound: 'the quotas; what is not finished goes with the sweep of objects (file-sweep.test.ts)' },
  sessions: {
    swept: `insert into sessions (tenant_id, id, user_id, expires_at)
      values ($1, gen_random_uuid(), $2, now() - interval '1 day')`,
    left: 'expires_at < now()'
  },
  changes: {
    swept: `insert into changes (tenant_id, kind, subject, expires_at)
      values ($1, 'session', $2, now() - interval '1 day')`,
    left: 'expires_at < now()'
  },
  outbox: {
    swept: `insert into outbox (tenant_id, kind, subject_id, generation, created_at, sent_at)
      values ($1, 'invitation', $2, 1, now() - interval '1 year', now() - interval '1 year')`,
    left: "sent_at < now() - interval '300 days'"
  },
  invitations: {
    swept: `insert into invitations (tenant_id, id, email, role, invited_by, expires_at, accepted_at) values
      ($1, gen_random_uuid(), 'late@example.com', 'viewer', $2, now() - interval '31 days', null),
      ($1, gen_random_uuid(), 'here@example.com', 'viewer', $2, now() - interval '60 days', now() - interval '31 days')`,
    left: "email in ('late@example.com', 'here@example.com')"
  },
  idempotency_keys: {
    swept: `insert into idempotency_keys (tenant_id, user_id, route, key, fingerprint, status, headers, body, expires_at)
      values ($1, $2, 'POST /things', 'old', sha256('a'), 201, '{}', '{}', now() - interval '1 day')`,
    left: 'expires_at < now()'
  },
  audit_events: {
    swept: `insert into audit_events (tenant_id, action, actor_id, created_at) values ($1, 'old', $2, '2001-01-15')`,
    left: "created_at < '2002-01-01'"
  },
  // of an agency that no longer exists
  audit_seals: {
    swept: `insert into audit_seals (tenant_id, seq, from_at, to_at, ids, hashes, digest)
      select gen_random_uuid(), 1, '2001-01-01', '2001-01-02', '{}', '{}', sha256('x') where $1 <> $2::uuid`,
    left: "to_at < '2001-01-03'"
  },
  audit_signatures: {
    swept: `insert into audit_signatures (tenant_id, seq, key_id, signature)
      select tenant_id, seq, 'a key', sha256('x') from audit_seals where to_at < '2001-01-03' and $1 <> $2::uuid`,
    left: "key_id = 'a key'"
  }
}

t.test('every table has a bound or is swept', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const found = await allRows(
    app.database,
    `select relname as name from pg_class
     where relkind in ('r', 'p') and not relispartition and relnamespace = 'public'::regnamespace order by 1`
  )
  t.strictSame(
    found.map(({ name }) => name),
    Object.keys(tables).sort(),
    'a new table names what keeps it small'
  )

  await createMonth(app.database, "'2001-01-01'::date")
  await withClient(app.database.owner, (client) => client.query('update audit_retention set keep_days = 365'))
  const left = async (name: string, condition: string) =>
    (await allRows(app.database, `select count(*)::int as n from ${name} where ${condition}`))[0]?.n
  const swept = Object.entries(tables).flatMap(([name, each]) => ('swept' in each ? [{ name, ...each }] : []))
  for (const { name, swept: insert, left: condition = 'true' } of swept) {
    await allRows(app.database, insert, [acme.id, acme.owner.id])
    t.ok((await left(name, condition)) > 0, `${name}: there is something to sweep`)
  }
  await app.housekeeping.run()
  for (const { name, left: condition = 'true' } of swept) t.equal(await left(name, condition), 0, `${name} is swept`)
})

t.test('an invitation that is still good stays, and one that has just ended too', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const invited = await acme.send(post('/invitations', { email: 'new@example.com', role: 'viewer' }))
  t.equal(invited.statusCode, 201)
  await allRows(
    app.database,
    `insert into invitations (tenant_id, id, email, role, invited_by, expires_at)
     values ($1, gen_random_uuid(), 'just@example.com', 'viewer', $2, now() - interval '29 days')`,
    [acme.id, acme.owner.id]
  )
  await app.housekeeping.run()
  const rows = await allRows(app.database, 'select email from invitations order by email')
  t.strictSame(rows, [{ email: 'just@example.com' }, { email: 'new@example.com' }])
})

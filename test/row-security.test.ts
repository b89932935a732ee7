import pg from 'pg'
import t, { type Test } from 'tap'
import { tenantTables } from './catalogue-defects.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import { id } from './gate-trials.ts'
import { allRows, createTestDatabase } from './harness.ts'

type Table = { name: string; columns: string[]; generated: string[]; key: string[]; partitions: string[] }
type Person = { tenant: string; user: string }

const a: Person = { tenant: id('a'), user: id('a1') }
const b: Person = { tenant: id('b'), user: id('b1') }
/** A member of both tenants. */
const both = id('ab')
/** A member of neither tenant. */
const stranger = id('c1')

/**
 * Inserts two rows into every table for a tenant ($1): one of its user ($2), and one of the user of both tenants ($3). A new table
 * needs an entry here.
 */
const rows: Record<string, string> = {
  memberships: `insert into memberships (tenant_id, user_id, role) values ($1, $2, 'owner'), ($1, $3, 'viewer')`,
  sessions: `insert into sessions (tenant_id, id, user_id, expires_at)
    values ($1, gen_random_uuid(), $2, now() + interval '1 day'), ($1, gen_random_uuid(), $3, now() + interval '1 day')`,
  changes: `insert into changes (tenant_id, kind, subject, expires_at)
    values ($1, 'session', $2, now() + interval '1 day'), ($1, 'member', $3, now() + interval '1 day')`,
  audit_events: `insert into audit_events (tenant_id, action, actor_id) values ($1, 'canary', $2), ($1, 'canary', $3)`,
  events: `insert into events (tenant_id, id, created_at) values ($1, $2, now()), ($1, $3, now())`,
  invitations: `insert into invitations (tenant_id, id, email, role, invited_by)
    values ($1, gen_random_uuid(), 'one-' || $2::uuid || '@example.com', 'viewer', $2),
      ($1, gen_random_uuid(), 'two-' || $3::uuid || '@example.com', 'viewer', $3)`,
  outbox: `insert into outbox (tenant_id, kind, subject_id, generation) values ($1, 'invitation', $2, 1), ($1, 'invitation', $3, 1)`,
  audit_seals: `insert into audit_seals (tenant_id, seq, from_at, to_at, ids, hashes, digest)
    values ($1, 1, now(), now(), array[$2::uuid], array[sha256('a')], sha256('a')),
      ($1, 2, now(), now(), array[$3::uuid], array[sha256('b')], sha256('b'))`,
  audit_signatures: `insert into audit_signatures (tenant_id, seq, key_id, signature)
    values ($1, 1, 'key', sha256($2::uuid::text::bytea)), ($1, 2, 'key', sha256($3::uuid::text::bytea))`,
  files: `insert into files (tenant_id, id, name, folded_name, size, created_by, expires_at)
    values ($1, $2, 'one', 'one', 1, $2, now()), ($1, $3, 'two', 'two', 1, $3, now())`,
  uploads: `insert into uploads (tenant_id, id) values ($1, $2), ($1, $3)`,
  upload_pieces: `insert into upload_pieces (tenant_id, upload_id, received, position, content)
    values ($1, $2, 0, 0, 'a'), ($1, $3, 0, 0, 'b')`,
  // one row a tenant
  storage_usage: `insert into storage_usage (tenant_id, bytes) select $1, 2 where $2::uuid <> $3::uuid`,
  identity_providers: `insert into identity_providers (tenant_id, id, place, name, issuer, client_id, client_secret, key_id)
    values ($1, $2, 1, 'one', 'https://one.example', 'id', 'sealed', 'key'),
      ($1, $3, 2, 'two', 'https://two.example', 'id', 'sealed', 'key')`,
  webhook_endpoints: `insert into webhook_endpoints (tenant_id, id, url, secret, key_id)
    values ($1, $2, 'https://one.example', 'sealed', 'key'), ($1, $3, 'https://two.example', 'sealed', 'key')`,
  webhook_deliveries: `insert into webhook_deliveries (tenant_id, id, endpoint_id, cause, event_id, event_type, event_at, position)
    values ($1, $2, $2, 'event', $2, 'file.created', now(), 1), ($1, $3, $3, 'event', $3, 'file.created', now(), 2)`,
  webhook_attempts: `insert into webhook_attempts (tenant_id, delivery_id, number, started_at, duration_ms)
    values ($1, $2, 1, now(), 1), ($1, $3, 1, now(), 1)`,
  tenant_domains: `insert into tenant_domains (tenant_id, name)
    values ($1, 'one-' || $2::uuid || '.example'), ($1, 'two-' || $3::uuid || '.example')`,
  api_keys: `insert into api_keys (tenant_id, id, name, role, permissions, cidrs, secret_hash, created_by)
    values ($1, $2, 'one', 'viewer', '{}', '{}', sha256('a'), $2), ($1, $3, 'two', 'viewer', '{}', '{}', sha256('b'), $3)`,
  // both of one person, because a stored reply is shown only to the person who sent the request
  idempotency_keys: `insert into idempotency_keys (tenant_id, user_id, route, key, fingerprint, status, headers, body)
    values ($1, $3, 'POST /things', 'one-' || $2::uuid, sha256('a'), 201, '{}', '{}'),
      ($1, $3, 'POST /things', 'two-' || $2::uuid, sha256('b'), 201, '{}', '{}')`
}

async function prepare(t: Test): Promise<{ database: DatabaseUrls; tables: Table[] }> {
  const database = await createTestDatabase(t)
  const tables = await withClient(database.postgres, async (client) => {
    await client.query('insert into tenants (id, slug, name) values ($1, $2, $2), ($3, $4, $4)', [
      ...[a.tenant, 'agency-a'],
      ...[b.tenant, 'agency-b']
    ])
    for (const user of [a.user, b.user, both, stranger]) {
      await client.query(
        "insert into users (id, email, name) values ($1::uuid, $1::uuid || '@example.com', 'Somebody')",
        [user]
      )
    }
    const { rows: found } = await client.query<Table>(tenantTables)
    // in the order of the list, because of foreign keys; a table without an entry is reported below
    const known = Object.keys(rows)
    const ordered = found.toSorted((one, two) => known.indexOf(one.name) - known.indexOf(two.name))
    for (const { name } of ordered) {
      const text = rows[name]
      if (!text) throw new Error(`${name} is a table of tenants: give it rows in test/row-security.test.ts`)
      for (const { tenant, user } of [a, b]) await client.query(text, [tenant, user, both])
    }
    // what the triggers have noted of the rows above
    await client.query("delete from changes where kind not in ('session', 'member')")
    await client.query('delete from events e using audit_events a where a.id = e.id')
    return ordered
  })
  return { database, tables }
}

async function connect(t: Test, url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  t.teardown(() => client.end())
  return client
}

type Scope = { tenant?: string; user?: string }

/** Runs a statement in a transaction with the settings of a scope, and commits, so that every effect remains. */
async function as(client: pg.Client, scope: Scope, text: string, values: unknown[] = []): Promise<pg.QueryResult> {
  await client.query('begin')
  try {
    if (scope.tenant !== undefined) await client.query("select set_config('app.tenant_id', $1, true)", [scope.tenant])
    if (scope.user !== undefined) await client.query("select set_config('app.user_id', $1, true)", [scope.user])
    const result = await client.query(text, values)
    await client.query('commit')
    return result
  } catch (err) {
    await client.query('rollback')
    throw err
  }
}

/** The result of a statement: the number of rows, or the code of the refusal. */
async function outcome(client: pg.Client, scope: Scope, text: string, values: unknown[] = []) {
  try {
    return (await as(client, scope, text, values)).rowCount
  } catch (err) {
    return (err as { code?: string }).code
  }
}

/** The lines of a COPY TO STDOUT. */
async function copyOut(client: pg.Client, scope: Scope, text: string): Promise<string[]> {
  const lines: string[] = []
  const wire = (client as unknown as { connection: NodeJS.EventEmitter }).connection
  const listen = ({ chunk }: { chunk: Buffer }) => lines.push(chunk.toString())
  wire.on('copyData', listen)
  try {
    await as(client, scope, text)
    return lines
  } finally {
    wire.off('copyData', listen)
  }
}

/** The columns of a table for which a role has a right. */
async function columnsFor(database: DatabaseUrls, role: string, table: Table, right: string): Promise<string[]> {
  const text = `select c from unnest($1::text[]) with ordinality as u (c, n)
    where has_column_privilege($2, $3::text, c, $4) order by n`
  return (await allRows(database, text, [table.columns, role, table.name, right])).map((row) => row.c)
}

const fingerprint = (database: DatabaseUrls, table: Table, tenant: string) =>
  allRows(database, `select t::text from ${table.name} t where tenant_id = $1 order by t::text`, [tenant])

const countRows = async (database: DatabaseUrls, table: string, tenant: string) =>
  Number((await allRows(database, `select count(*) from ${table} where tenant_id = $1`, [tenant]))[0].count)

/*
 * Runs twice. For the server's role a missing grant may be the reason of a refusal. The owner of the tables has every right, so only
 * the policies can refuse.
 */
for (const role of ['aggios_app', 'aggios_owner'] as const) {
  t.test(`the rows of tenants, as ${role}`, async (t) => {
    const { database, tables } = await prepare(t)
    const client = await connect(t, role === 'aggios_app' ? database.app : database.owner)
    t.ok(tables.length >= 4, `${tables.length} tables`)

    for (const table of tables) {
      await t.test(table.name, async (t) => {
        const { name, key } = table
        const [select, insert, update, remove] = [
          await columnsFor(database, role, table, 'select'),
          await columnsFor(database, role, table, 'insert'),
          await columnsFor(database, role, table, 'update'),
          (await allRows(database, 'select has_table_privilege($1, $2::text, $3) as may', [role, name, 'delete']))[0]
            .may
        ]
        const denied = '42501'
        const before = await fingerprint(database, table, b.tenant)
        const [foreign] = await allRows(database, `select to_jsonb(t) as row from ${name} t where tenant_id = $1`, [
          b.tenant
        ])
        t.ok(foreign, 'the other tenant has rows')
        const countAll = `select count(*)::int as n from ${name}`
        const count = async (scope: Scope, condition = 'true') =>
          (await as(client, scope, `${countAll} where ${condition}`)).rows[0].n
        // as the user of the row, so that only the tenant can be the reason of a refusal
        const person = foreign.row.user_id ?? b.user
        const inA = { tenant: a.tenant, user: person }
        const inB = { tenant: b.tenant, user: person }

        /** An insert of a row of B with these columns. */
        const copyOf = (columns: string[], rest = '') =>
          `insert into ${name} (${columns}) overriding system value
            select ${columns} from jsonb_populate_record(null::${name}, $1) ${rest}`
        const whole = table.columns

        await t.test('without a tenant nothing is there, and nothing can be written', async (t) => {
          for (const scope of [{}, { user: person }, { tenant: '' }, { tenant: '', user: person }]) {
            if (select.length > 0) t.equal(await count(scope), 0)
            else t.equal(await outcome(client, scope, countAll), denied)
            t.equal(await outcome(client, scope, copyOf(insert.length > 0 ? insert : whole), [foreign.row]), denied)
            t.equal(await outcome(client, scope, copyOf(whole), [foreign.row]), denied)
            const assignment = update.length > 0 ? `${update[0]} = ${update[0]}` : `tenant_id = tenant_id`
            const changed = await outcome(client, scope, `update ${name} set ${assignment}`)
            t.equal(changed, update.length > 0 ? 0 : denied)
            t.equal(await outcome(client, scope, `delete from ${name}`), remove ? 0 : denied)
          }
        })
        await t.test('a tenant that does not exist has no rows, and one that is no uuid is an error', async (t) => {
          if (select.length > 0) t.equal(await count({ tenant: id('dead') }), 0)
          else t.equal(await outcome(client, { tenant: id('dead') }, countAll), denied)
          const refusal = await outcome(client, { tenant: "' or true" }, countAll)
          t.equal(refusal, select.length > 0 ? '22P02' : denied)
        })
        await t.test("another tenant's rows can't be seen", async (t) => {
          const own = await countRows(database, name, a.tenant)
          t.ok(own > 0, 'there are rows of its own')
          if (select.length === 0) {
            t.equal(await outcome(client, inA, countAll), denied)
            return
          }
          t.equal(await count(inA), own)
          t.equal(await count(inA, `tenant_id = '${b.tenant}'`), 0)
          t.equal(await count(inA, `tenant_id <> '${a.tenant}'`), 0)
          t.equal(await count(inB, `tenant_id = '${b.tenant}'`), before.length)
          const locked = await outcome(client, inA, `select from ${name} where tenant_id = '${b.tenant}' for share`)
          t.equal(locked, update.length > 0 ? 0 : denied)
        })
        await t.test("another tenant's rows can't be changed or removed", async (t) => {
          for (const column of update) {
            const text = `update ${name} set ${column} = ${column} where tenant_id = '${b.tenant}'`
            t.equal(await outcome(client, inA, text), table.generated.includes(column) ? '428C9' : 0, column)
          }
          for (const column of whole.filter((each) => !update.includes(each))) {
            const text = `update ${name} set ${column} = default where tenant_id = '${b.tenant}'`
            t.equal(await outcome(client, inA, text), denied, column)
          }
          const removed = await outcome(client, inA, `delete from ${name} where tenant_id = '${b.tenant}'`)
          t.equal(removed, remove ? 0 : denied)
        })
        await t.test("a row can't be put into, or moved to, another tenant", async (t) => {
          t.equal(await outcome(client, inA, copyOf(whole), [foreign.row]), denied)
          t.equal(await outcome(client, inA, copyOf([...new Set([...insert, 'tenant_id'])]), [foreign.row]), denied)
          t.equal(await outcome(client, inA, `update ${name} set tenant_id = '${b.tenant}'`), denied)
          // the same row in its own tenant passes the policy, and is a duplicate
          // (a revocation replaces the older entry about the same subject)
          const again = name === 'changes' ? 1 : '23505'
          if (insert.includes('tenant_id')) t.equal(await outcome(client, inB, copyOf(whole), [foreign.row]), again)
        })
        await t.test("an upsert on another tenant's key has no effect there", async (t) => {
          const column = update.find((each) => !key.includes(each)) ?? whole.find((each) => !key.includes(each))
          for (const conflict of [
            `on conflict (${key}) do nothing`,
            `on conflict (${key}) do update set ${column} = excluded.${column}`,
            'on conflict do nothing'
          ]) {
            t.equal(await outcome(client, inA, copyOf(whole, conflict), [foreign.row]), denied, conflict)
          }
          // with the writable columns alone, the row gets the own tenant or is refused; it never gets the other one
          const mine = insert.filter((each) => each !== 'tenant_id')
          await outcome(client, inA, copyOf(mine, 'on conflict do nothing'), [foreign.row])
          t.strictSame(await fingerprint(database, table, b.tenant), before)
        })
        await t.test('COPY is filtered one way and refused the other', async (t) => {
          const from = await outcome(client, inA, `copy ${name} (${insert.length > 0 ? insert : whole}) from stdin`)
          t.equal(from, insert.length > 0 ? '0A000' : denied)
          if (select.length === 0) {
            await t.rejects(copyOut(client, inA, `copy ${name} (tenant_id) to stdout`), { code: denied })
            return
          }
          const own = await countRows(database, name, a.tenant)
          const lines = await copyOut(client, inA, `copy (select ${select} from ${name}) to stdout`)
          t.equal(lines.length, own)
          t.notMatch(lines.join(''), b.tenant)
          // for a partitioned table this form copies only the rows of the parent: none
          const plain = await copyOut(client, inA, `copy ${name} (${select}) to stdout`)
          t.equal(plain.length, table.partitions.length > 0 ? 0 : own)
          t.notMatch(plain.join(''), b.tenant)
          t.strictSame(await copyOut(client, {}, `copy ${name} (${select}) to stdout`), [])
          t.strictSame(await copyOut(client, {}, `copy (select ${select} from ${name}) to stdout`), [])
        })
        await t.test('row security can not be left out', async (t) => {
          await client.query('set row_security = off')
          t.equal(await outcome(client, inA, countAll), denied)
          t.equal(await outcome(client, {}, countAll), denied)
          await client.query('reset row_security')
        })
        await t.test('its partitions are no way around it', async (t) => {
          for (const partition of table.partitions) {
            // the server has no right to them, and their owner has row security without a policy
            const expected = role === 'aggios_app' ? denied : 0
            t.equal(await outcome(client, inB, `select from ${partition}`), expected)
            t.equal(await outcome(client, inB, `delete from ${partition}`), expected)
            t.equal(await outcome(client, inB, `update ${partition} set tenant_id = tenant_id`), expected)
            t.equal(await outcome(client, inB, `insert into ${partition} (action) values ('x')`), denied)
          }
          const attached = `select inhrelid::regclass::text as name from pg_inherits where inhparent = $1::regclass order by 1`
          const names = (await allRows(database, attached, [name])).map((row) => row.name)
          t.strictSame(table.partitions, names)
        })
        t.strictSame(
          await fingerprint(database, table, b.tenant),
          before,
          'not one byte of the other tenant has changed'
        )
      })
    }
  })
}

t.test('tenants themselves', async (t) => {
  const { database } = await prepare(t)
  for (const [role, url] of [
    ['aggios_app', database.app],
    ['aggios_owner', database.owner]
  ] as const) {
    const client = await connect(t, url)
    await t.test(`as ${role}`, async (t) => {
      const ids = async (scope: Scope) => (await as(client, scope, 'select id from tenants')).rows.map((row) => row.id)
      t.strictSame(await ids({}), [])
      t.strictSame(await ids({ user: a.user }), [], 'also for a member, without the tenant')
      t.strictSame(await ids({ tenant: a.tenant }), [a.tenant])
      t.equal(await outcome(client, {}, "update tenants set name = 'X'"), 0)
      t.equal(await outcome(client, { tenant: a.tenant }, `update tenants set name = 'X' where id = '${b.tenant}'`), 0)
      t.equal(await outcome(client, { tenant: a.tenant }, "update tenants set name = 'X'"), 1, 'its own')
      const insert = `insert into tenants (id, slug, name) values ('${id(`d${role.length}`)}', 'new-${role.length}', 'New')`
      t.equal(await outcome(client, {}, insert), '42501')
      t.equal(await outcome(client, { tenant: a.tenant }, insert), '42501')
      t.equal(await outcome(client, { tenant: id(`d${role.length}`) }, insert), 1, 'its own')
      t.equal(await outcome(client, { tenant: a.tenant }, `update tenants set id = '${b.tenant}'`), '42501')
      const gone = await outcome(client, { tenant: a.tenant }, `delete from tenants where id = '${b.tenant}'`)
      t.equal(gone, role === 'aggios_app' ? '42501' : 0)
      await client.query('set row_security = off')
      t.equal(await outcome(client, { tenant: a.tenant }, 'select from tenants'), '42501')
    })
  }
  const names = await allRows(database, 'select name from tenants where id = $1', [b.tenant])
  t.strictSame(names, [{ name: 'agency-b' }])
})

t.test('identities', async (t) => {
  const { database } = await prepare(t)
  const client = await connect(t, database.app)
  const visible = async (scope: Scope) =>
    (await as(client, scope, 'select id from users')).rows.map((row) => row.id).sort()

  await t.test('a person is seen by themselves and by the tenants they belong to', async (t) => {
    t.strictSame(await visible({}), [])
    t.strictSame(await visible({ user: stranger }), [stranger])
    t.strictSame(await visible({ tenant: a.tenant }), [a.user, both].sort())
    t.strictSame(await visible({ tenant: b.tenant }), [b.user, both].sort())
    t.strictSame(await visible({ tenant: a.tenant, user: a.user }), [a.user, both].sort())
    t.strictSame(await visible({ tenant: a.tenant, user: stranger }), [a.user, both, stranger].sort())
    t.strictSame(await visible({ tenant: id('dead') }), [])
    const [found] = (await as(client, { tenant: a.tenant }, `select count(*)::int from users where id = '${b.user}'`))
      .rows
    t.equal(found.count, 0, 'not by its id either')
  })
  await t.test('a person is changed by themselves only', async (t) => {
    const rename = (user: string) => `update users set name = 'X' where id = '${user}'`
    t.equal(
      await outcome(client, { tenant: a.tenant, user: a.user }, rename(both)),
      0,
      'a member, seen and not changed'
    )
    t.equal(await outcome(client, { tenant: a.tenant, user: a.user }, rename(b.user)), 0)
    t.equal(await outcome(client, { tenant: a.tenant }, rename(a.user)), 0, 'not by the tenant')
    t.equal(await outcome(client, {}, "update users set name = 'X'"), 0)
    t.equal(await outcome(client, { tenant: a.tenant, user: a.user }, "update users set name = 'Y'"), 1, 'oneself')
    const changed = await allRows(database, "select id from users where name <> 'Somebody'")
    t.strictSame(changed, [{ id: a.user }])
    t.equal(await outcome(client, { user: a.user }, `delete from users where id = '${a.user}'`), '42501')
  })
  await t.test('a person is made by themselves only, and not over somebody else', async (t) => {
    const fresh = id('f1')
    const insert = (user: string, email: string, rest = '') =>
      `insert into users (id, email, name) values ('${user}', '${email}', 'New') ${rest}`
    t.equal(await outcome(client, {}, insert(fresh, 'f@example.com')), '42501')
    t.equal(await outcome(client, { tenant: a.tenant, user: a.user }, insert(fresh, 'f@example.com')), '42501')
    const upsert = 'on conflict (email) do update set name = excluded.name'
    const taken = insert(fresh, `${b.user}@example.com`, upsert)
    t.equal(await outcome(client, { user: fresh }, taken), '42501', 'the address of somebody else')
    t.equal(await outcome(client, { user: fresh }, insert(fresh, 'f@example.com')), 1, 'by themselves')
  })
  await t.test('nobody is made a member by somebody else', async (t) => {
    const add = (user: string, role = 'viewer') =>
      `insert into memberships (user_id, role) values ('${user}', '${role}')`
    t.equal(
      await outcome(client, { tenant: a.tenant, user: a.user }, add(stranger)),
      '42501',
      'by the owner of a tenant'
    )
    t.equal(await outcome(client, { tenant: a.tenant }, add(stranger)), '42501', 'by nobody')
    const upsert = `${add(stranger)} on conflict (tenant_id, user_id) do update set last_used_at = now()`
    t.equal(await outcome(client, { tenant: a.tenant, user: a.user }, upsert), '42501', 'on the quiet')
    const moved = `update memberships set user_id = '${stranger}' where user_id = '${both}'`
    t.equal(await outcome(client, { tenant: a.tenant, user: a.user }, moved), '42501', 'in the place of another')
    t.strictSame(await visible({ tenant: a.tenant }), [a.user, both].sort(), 'so the tenant still does not see them')
    t.equal(await outcome(client, { tenant: a.tenant, user: stranger }, add(stranger)), 1, 'by their own act')
    t.strictSame(await visible({ tenant: a.tenant }), [a.user, both, stranger].sort())
  })
  await t.test('the functions of "my" things answer about the user of the gate, whatever the tenant', async (t) => {
    const mine = async (scope: Scope) =>
      (await as(client, scope, 'select id from my_tenants()')).rows.map((row) => row.id).sort()
    t.strictSame(await mine({}), [])
    t.strictSame(await mine({ tenant: a.tenant }), [])
    t.strictSame(await mine({ user: both }), [a.tenant, b.tenant])
    t.strictSame(await mine({ user: b.user, tenant: a.tenant }), [b.tenant])
    const sessions = async (scope: Scope) => (await as(client, scope, "select id from my_sessions('1 day')")).rowCount
    t.equal(await sessions({}), 0)
    t.equal(await sessions({ tenant: a.tenant }), 0)
    t.equal(await sessions({ user: b.user, tenant: a.tenant }), 1)
    t.equal(await sessions({ user: both }), 2)
    const end = (scope: Scope, one: string | null) =>
      as(client, scope, "select end_my_sessions($1, null, '1 hour')::int as n", [one]).then(({ rows }) => rows[0].n)
    const [open] = await allRows(database, 'select id from sessions where user_id = $1', [b.user])
    t.equal(await end({ user: a.user, tenant: b.tenant }, open.id), 0, "somebody else's session")
    t.equal(await end({ tenant: b.tenant }, open.id), 0, "a tenant's")
    t.equal(await end({ user: b.user }, open.id), 1, "one's own")
    t.equal((await as(client, {}, 'select from my_credentials()')).rowCount, 0)
    const [mail] = (await as(client, { user: a.user, tenant: b.tenant }, 'select email from my_credentials()')).rows
    t.equal(mail.email, `${a.user}@example.com`)
    t.equal((await as(client, {}, "select end_my_identity('1 hour') as x")).rows[0].x, 'ended', 'nobody ends')
    t.equal((await allRows(database, 'select from users where id = any ($1)', [[a.user, b.user, both]])).length, 3)
  })
})

t.test('settings end with their transaction', async (t) => {
  const { database } = await prepare(t)
  const client = await connect(t, database.app)
  const left = async () =>
    (
      await client.query(`select current_setting('app.tenant_id', true) as setting, current_tenant_id() as tenant,
        current_user_id() as "user", current_request() as request, (select count(*)::int from memberships) as rows`)
    ).rows[0]
  const nothing = { tenant: null, user: null, request: null, rows: 0 }

  t.strictSame(await left(), { ...nothing, setting: null }, 'on a new connection it does not exist')
  for (const end of ['commit', 'rollback']) {
    await client.query('begin')
    await client.query(
      `select set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true),
      set_config('app.request', '{"id": "x"}', true)`,
      [a.tenant, a.user]
    )
    t.match(await left(), { setting: a.tenant, tenant: a.tenant, user: a.user, request: { id: 'x' }, rows: 2 })
    await client.query(end)
    t.strictSame(await left(), { ...nothing, setting: '' }, `after a ${end} it is empty, which is nobody`)
  }
  await client.query('begin; savepoint s')
  await client.query("select set_config('app.tenant_id', $1, true)", [a.tenant])
  await client.query('rollback to s')
  t.strictSame(await left(), { ...nothing, setting: '' }, 'it goes with a savepoint too')
  await client.query('rollback')
})

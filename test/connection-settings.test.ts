import t, { type Test } from 'tap'
import { startUpOptions } from '../db/gate/connection-settings.ts'
import { migrate } from '../db/migrate.ts'
import { createDatabase, type DatabaseUrls, dropDatabase, withClient } from './databases.ts'
import { fileForm } from './forms.ts'
import { allRows, createTenant, createTestDatabase, eventually, post, send, startApp, type TestApp } from './harness.ts'
import { pgbouncer, startPgBouncer } from './pgbouncer.ts'

// bounded in time: requests with the time-outs of a database at their worst

/*
 * A role, a database and a server have defaults for settings of a connection, and administrators can change them. The answers of
 * the product must not depend on them.
 */

/** The settings that the product sets on each connection, with the worst defaults. */
const carried = {
  client_encoding: 'LATIN1',
  DateStyle: 'SQL, DMY',
  TimeZone: 'Asia/Kathmandu',
  IntervalStyle: 'sql_standard',
  bytea_output: 'escape',
  extra_float_digits: '-15',
  standard_conforming_strings: 'off',
  backslash_quote: 'off',
  quote_all_identifiers: 'on',
  array_nulls: 'off',
  transform_null_equals: 'on',
  search_path: 'nowhere',
  row_security: 'off',
  exit_on_error: 'on',
  'plpgsql.extra_errors': 'all',
  default_transaction_isolation: 'serializable',
  default_transaction_deferrable: 'on'
}
/** Time-outs that end idle connections. Behind a pooler they end those of the pooler, not those of the product. */
const ofConnection = {
  statement_timeout: '1ms',
  lock_timeout: '1ms',
  idle_in_transaction_session_timeout: '1ms',
  idle_session_timeout: '1ms'
}
/** Settings that the product does not set. The flow must give the same answers with their worst defaults. */
const indifferent = {
  default_text_search_config: 'pg_catalog.turkish',
  icu_validation_level: 'error',
  lc_messages: 'C',
  lc_monetary: 'C',
  lc_numeric: 'C',
  lc_time: 'C',
  timezone_abbreviations: 'India',
  check_function_bodies: 'off',
  client_min_messages: 'debug5',
  createrole_self_grant: 'set',
  default_table_access_method: 'heap',
  default_tablespace: '',
  default_toast_compression: 'pglz',
  gin_pending_list_limit: '64',
  restrict_nonsystem_relation_kind: 'view, foreign-table',
  temp_tablespaces: '',
  xmlbinary: 'hex',
  xmloption: 'document',
  escape_string_warning: 'off',
  lo_compat_privileges: 'on',
  synchronize_seqscans: 'off'
}

t.test(
  'every setting by which a statement is read or its rows are written is the product’s, or known not to matter',
  async (t) => {
    const database = await createTestDatabase(t)
    const rows = await allRows(
      database,
      `select name from pg_settings where context in ('user', 'superuser') and name not like 'vacuum%' and (
       category like 'Version and Platform Compatibility%' or category in ('Error Handling',
       'Client Connection Defaults / Locale and Formatting', 'Client Connection Defaults / Statement Behavior'))
       and name not in ('transaction_isolation', 'transaction_read_only', 'transaction_deferrable')`
    )
    // by the first an operator keeps a database from being written; a role can't set the other for itself: the start is refused
    const operators = ['default_transaction_read_only', 'session_replication_role']
    const known = [...Object.keys({ ...carried, ...ofConnection, ...indifferent }), ...operators]
    t.strictSame(
      rows.map(({ name }) => name as string).filter((name) => !known.includes(name)),
      []
    )
    const options = startUpOptions({ statement_timeout: 1, lock_timeout: 1, idle_in_transaction_session_timeout: 1 })
    const set = [...options.matchAll(/-c ([\w.]+)=/g)].map(([, name]) => name)
    t.strictSame(set.sort(), Object.keys({ ...carried, ...ofConnection }).sort())
  }
)

const statements = (target: string, settings: Record<string, string>) =>
  Object.entries(settings).map(([name, value]) => {
    const values = name === 'restrict_nonsystem_relation_kind' ? value.split(', ') : [value]
    return `alter ${target} set ${name} = ${values.map((each) => `'${each}'`).join(', ')}`
  })

async function setAll(urls: DatabaseUrls, target: string, settings: Record<string, string>): Promise<void> {
  await withClient(urls.postgres, async (admin) => {
    // defaults apply to connections that are opened from now on
    await admin.query('set search_path = public; set standard_conforming_strings = on')
    for (const text of statements(target, settings)) await admin.query(text)
  })
}

const nameOf = ({ app }: DatabaseUrls) => new URL(app).pathname.slice(1)

/** The answers of a small flow, without the parts that differ each time. */
async function flow(app: TestApp): Promise<string[]> {
  const said: string[] = []
  const say = (what: string, reply: { statusCode: number; body: string }) => {
    said.push(`${what}: ${reply.statusCode} ${withoutNovelty(reply.body)}`)
  }
  const acme = await createTenant(app, 'acme')
  const login = await send(
    app,
    'acme.localhost',
    post('/auth/login', { email: acme.owner.email, password: 'correct horse battery' })
  )
  say('login', login)
  const file = await acme.send(fileForm('Grüße', 'it’s.txt'))
  say('file', file)
  say('content', await acme.send(`/api/v1/files/${file.json().id}/content`))
  say(
    'invited',
    await acme.send(post('/invitations', { email: "o'neil@example.com", role: 'viewer' }, { 'idempotency-key': 'one' }))
  )
  say(
    'invited again',
    await acme.send(post('/invitations', { email: "o'neil@example.com", role: 'viewer' }, { 'idempotency-key': 'one' }))
  )
  say('a second agency', await acme.send(post('/tenants', { name: 'More', slug: 'more' })))
  say('taken', await acme.send(post('/tenants', { name: 'More', slug: 'more' })))
  // the mail goes out meanwhile
  await eventually(async () => (await acme.send('/api/v1/invitations')).json().data[0]?.delivery === 'sent')
  for (const path of ['users/me', 'users/me/sessions', 'tenant', 'members', 'invitations', 'files', 'audit-events']) {
    say(path, await acme.send(`/api/v1/${path}?limit=3`.replace(/(me|sessions|tenant)\?limit=3$/, '$1')))
  }
  say('export', await acme.send('/api/v1/audit-events/export'))
  say('all', await acme.send('/api/v1/tenant/export'))
  say('verified', await acme.send('/api/v1/audit-events/verify'))
  say('refresh', await acme.anonymous(post('/auth/refresh', { refresh_token: login.json().refresh_token })))
  say('deleted', await acme.send({ method: 'DELETE', url: `/api/v1/files/${file.json().id}` }))
  say('signed out', await acme.send(post('/auth/logout', undefined)))
  say('and out', await acme.send('/api/v1/users/me'))
  say('back', await acme.anonymous(post('/auth/login', { email: acme.owner.email, password: 'correct horse battery' })))
  say('health', await send(app, 'localhost', '/api/v1/health'))
  return said
}

function withoutNovelty(body: string): string {
  return body
    .replaceAll(/"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{1,6}(?:Z|\+00:00)"/g, (time) => {
      const age = Date.now() - Date.parse(JSON.parse(time))
      return Math.abs(age) < 60_000 ? '<now>' : age < 0 ? '<later>' : '<before>'
    })
    .replaceAll(/[\da-f]{8}(-[\da-f]{4}){3}-[\da-f]{12}/g, '<id>')
    .replaceAll(/"[\w-]{20,}(\.[\w-]+){0,2}"/g, '<token>')
    .replaceAll(/"(uptime_seconds|latency_ms|rss_bytes)":[\d.]+/g, '"$1":<number>')
}

const expected = await (async () => {
  let said: string[] = []
  await t.test('the flow with the defaults of PostgreSQL', async (t) => {
    said = await flow(await startApp(t))
    t.match(said.join('\n'), /<now>/)
    t.notMatch(said.join('\n'), /: 5\d\d |: 4(?!01 |09 )\d\d /)
  })
  return said
})()

async function startsAndAnswers(t: Test, database: DatabaseUrls, env = {}): Promise<void> {
  const app = await startApp(t, env, database)
  t.strictSame(await flow(app), expected)
}

for (const [what, target] of [
  ['the database', (name: string) => `database ${name}`],
  ['the role', (name: string) => `role aggios_app in database ${name}`]
] as const) {
  t.test(`defaults of ${what} change no answer`, async (t) => {
    const database = await createTestDatabase(t)
    await setAll(database, target(nameOf(database)), { ...carried, ...ofConnection, ...indifferent })
    await startsAndAnswers(t, { ...database, serving: database.app })
  })
}

t.test('nor do they behind a pooler, which knows nothing of them', { skip: pgbouncer.skip }, async (t) => {
  const database = await createTestDatabase(t)
  await setAll(database, `role aggios_app in database ${nameOf(database)}`, { ...carried, ...indifferent })
  const pooler = await startPgBouncer(database.app, { poolSize: 4 })
  t.teardown(() => pooler.stop())
  await startsAndAnswers(t, database, { DATABASE_URL: pooler.through(database.app), DATABASE_POOLER: 'transaction' })
})

t.test('a schema that was made under them is the same', async (t) => {
  const name = `s_${process.pid}`
  const database = await createDatabase(name, 'template1')
  t.teardown(() => dropDatabase(name))
  for (const role of ['aggios_owner', 'aggios_app']) {
    await setAll(database, `role ${role} in database ${name}`, { ...carried, ...ofConnection, ...indifferent })
  }
  t.not((await migrate(database.owner)).length, 0)
  await startsAndAnswers(t, { ...database, serving: database.app })
})

for (const [how, options] of [
  ['', {}],
  [', nor through a pooler', { skip: pgbouncer.skip }]
] as const) {
  t.test(`a database that its operator keeps from being written is not written${how}`, options, async (t) => {
    const database = await createTestDatabase(t)
    const pooler = how === '' ? undefined : await startPgBouncer(database.app, { poolSize: 4 })
    t.teardown(() => pooler?.stop())
    const env = pooler && { DATABASE_URL: pooler.through(database.app), DATABASE_POOLER: 'transaction' }
    const app = await startApp(t, env ?? {}, database)
    const acme = await createTenant(app, 'acme')
    const fence = { default_transaction_read_only: 'on' }
    await setAll(database, `role aggios_app in database ${nameOf(database)}`, fence)
    // a default applies to new connections
    await withClient(database.postgres, (admin) =>
      admin.query(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = current_database() and usename = 'aggios_app'"
      )
    )
    await eventually(async () => (await acme.send('/api/v1/tenant')).statusCode === 200)
    const refused = await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { name: 'Refused' } })
    t.equal(refused.statusCode, 503)
    t.equal((await acme.send('/api/v1/tenant')).json().name, 'The acme agency')
  })
}

t.test('a role for which triggers are off is refused', async (t) => {
  const database = await createTestDatabase(t)
  await setAll(database, `role aggios_app in database ${nameOf(database)}`, { session_replication_role: 'replica' })
  await t.rejects(startApp(t, {}, database), { message: /session_replication_role = replica/ })
})

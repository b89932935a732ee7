import { readFileSync } from 'node:fs'
import { sql } from 'kysely'
import t from 'tap'
import { systemScope } from '../db/gate/gate-query.ts'
import { statement } from '../db/gate/statement.ts'
import { signInMethods } from '../plugins/observability/sign-ins.ts'
import { conflict } from '../src/http/problems.ts'
import { render } from '../src/metrics.ts'
import { withClient } from './databases.ts'
import { type Exposition, parseExposition } from './exposition.ts'
import { allRows, createTenant, password, post, send, startApp, type TestApp, withoutPooler } from './harness.ts'
import { freePort } from './ports.ts'
import { unusedRedisUrl } from './redis.ts'

/*
 * The metrics of work that nobody waits for: background jobs, services that are away, failed statements, sign-ins. And their
 * number does not depend on how many agencies there are.
 */

const scrape = async (app: TestApp): Promise<Exposition> =>
  parseExposition(render([{ worker: '1', families: await app.metrics.collect() }]))

const asAdmin = (app: TestApp, text: string) => withClient(app.database.postgres, (client) => client.query(text))

t.test('background jobs', async (t) => {
  const app = await startApp(t)
  const at = 'aggios_job_last_success_timestamp_seconds'

  t.test('say when they last succeeded, and how often they run', async (t) => {
    const before = await scrape(app)
    t.equal(before.sum(at, { task: 'seal' }), 0, 'never, as yet')
    const startedAt = Date.now() / 1000
    await app.housekeeping.run()
    await app.objectSweep.run()
    await app.domainChecks.run()
    await app.events.run()
    await app.webhooks.run()
    await app.keyUses.run()
    const page = await scrape(app)
    const jobs = page.series.filter(({ name }) => name === at).map(({ labels }) => labels.task as string)
    // these run when there is something to do as well: others tell of them
    const others = ['stale_parts', 'send_mails']
    const seconds: Record<string, number> = { place_events: 0.5, tell_of_events: 0.5, webhooks: 1 }
    for (const job of jobs.filter((each) => !others.includes(each))) {
      t.ok(page.sum(at, { task: job }) >= Math.floor(startedAt), job)
      t.equal(page.sum('aggios_job_interval_seconds', { task: job }), seconds[job] ?? 60, job)
      t.equal(page.sum('aggios_job_failures_total', { task: job }), 0, job)
      t.ok(page.sum('aggios_job_last_duration_seconds', { task: job }) > 0, job)
    }
    t.equal(jobs.length, 23)
  })

  t.test('and one that fails does not hide behind the others', async (t) => {
    const before = await scrape(app)
    await asAdmin(app, 'revoke execute on function sweep_invitations(integer) from aggios_app')
    await app.housekeeping.run()
    const page = await scrape(app)
    t.equal(page.sum('aggios_job_failures_total', { task: 'invitations' }), 1)
    t.equal(page.sum('aggios_job_failures_total'), 1)
    t.equal(page.sum(at, { task: 'invitations' }), before.sum(at, { task: 'invitations' }))
    t.ok(page.sum(at, { task: 'sessions' }) > before.sum(at, { task: 'sessions' }))
    t.equal(page.sum('aggios_database_errors_total', { class: '42' }), 1)
  })

  t.test('a job that is off is not there', async (t) => {
    const { has } = await scrape(await startApp(t, { SWEEP: 'off' }))
    t.notOk(has(at, { task: 'remove_files' }))
    t.ok(has(at, { task: 'send_mails' }))
  })
})

t.test('what waits', async (t) => {
  const app = await startApp(t)
  const calm = await scrape(app)
  t.equal(calm.sum('aggios_mails_due'), 0)
  t.equal(calm.sum('aggios_mails_due_age_seconds'), 0)
  t.equal(calm.sum('aggios_audit_unsealed_seconds'), 0)
  t.equal(calm.sum('aggios_audit_months_ahead'), 2)

  const other = await startApp(t, {}, app.database)
  await asAdmin(
    app,
    // as if nobody sent mails
    `revoke execute on function claim_account_mail(text[], integer, interval) from aggios_app;
     insert into account_mails (kind, address, due_at) values
       ('reset', 'x@y.example', now() - interval '1 hour'), ('reset', 'z@y.example', now() + interval '1 hour');
     insert into audit_events (tenant_id, action, created_at)
       select gen_random_uuid(), 'session.opened', now() - interval '5 seconds';
     do $$ begin execute 'drop table audit_events_' || to_char((now() at time zone 'utc') + interval '1 month', 'yyyy_mm'); end $$`
  )
  const page = await scrape(other)
  t.equal(page.sum('aggios_mails_due'), 1)
  t.ok(Math.abs(page.sum('aggios_mails_due_age_seconds') - 3600) < 60)
  const unsealed = page.sum('aggios_audit_unsealed_seconds')
  t.ok(unsealed >= 5 && unsealed < 60, `${unsealed} s`)
  t.equal(page.sum('aggios_audit_months_ahead'), 0, 'the month after the next one does not help')

  // a fault of this one statement costs nobody the other metrics
  const third = await startApp(t, {}, app.database)
  await asAdmin(app, 'revoke execute on function upkeep() from aggios_app')
  const blind = await scrape(third)
  t.notOk(blind.has('aggios_mails_due'))
  t.equal(blind.sum('aggios_metric_failures_total'), 1)
  t.equal(blind.sum('aggios_dependency_up', { dependency: 'database' }), 1)
})

t.test('services', async (t) => {
  t.test('that answer are up', async (t) => {
    const app = await startApp(t)
    const page = await scrape(app)
    t.equal(page.sum('aggios_dependency_up', { dependency: 'database' }), 1)
    t.equal(page.sum('aggios_dependency_up', { dependency: 'storage' }), 1)
    t.notOk(page.has('aggios_dependency_up', { dependency: 'redis' }), 'there is none')
    t.ok(page.sum('aggios_dependency_latency_seconds', { dependency: 'database' }) < 2)
    const build = page.series.find(({ name }) => name === 'aggios_build_info')
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))
    t.match(build, { value: 1, labels: { version, revision: 'unknown', node: process.version } })
  })
  t.test('that do not answer are down', async (t) => {
    const s3 = {
      S3_ENDPOINT: `http://127.0.0.1:${await freePort()}`,
      S3_BUCKET: 'none',
      S3_ACCESS_KEY: 'none',
      S3_SECRET_KEY: 'a secret that nobody asks for'
    }
    const app = await startApp(t, { REDIS_URL: await unusedRedisUrl(), ...s3 })
    const page = await scrape(app)
    for (const [dependency, up] of Object.entries({ database: 1, storage: 0, redis: 0 })) {
      t.equal(page.sum('aggios_dependency_up', { dependency }), up, dependency)
    }
  })
})

t.test('failed statements are counted by the class of their SQLSTATE', withoutPooler, async (t) => {
  const app = await startApp(t)
  const count = async (name: string) => {
    const page = await scrape(app)
    return page.has('aggios_database_errors_total', { class: name })
      ? page.sum('aggios_database_errors_total', { class: name })
      : 0
  }
  const keyed = statement('divide', (_, $: { by: number }) => sql`select 1 / ${$.by}::int as n`)
  const listed = statement('divide_slowly', (_, $: { by: number }) => sql`select 1 / ${$.by}::int as n`, { slow: true })
  t.equal(await count('22'), 0)
  await t.rejects(app.gate.query(systemScope, keyed, { by: 0 }), { code: '22012' })
  await t.rejects(app.gate.query(systemScope, listed, { by: 0 }), { code: '22012' })
  await t.rejects(
    app.gate.transaction(systemScope, (trx) => sql`select 1 / 0`.execute(trx)),
    { code: '22012' }
  )
  t.equal(await count('22'), 3)
  await t.rejects(
    app.gate.transaction(systemScope, (trx) => sql`set local statement_timeout = 1; select pg_sleep(60)`.execute(trx)),
    { code: '57014' }
  )
  t.equal(await count('57'), 1)
  await t.rejects(
    app.gate.transaction(systemScope, async () => {
      throw conflict()
    })
  )
  await app.gate.query(systemScope, keyed, { by: 1 })
  t.strictSame(app.gate.stats().errors, { 22: 3, 57: 1 }, 'a refusal of the product is no error of the database')
})

t.test('sign-ins are counted by how they end', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { email, tokens } = acme.owner
  const login = (given: string) => acme.anonymous(post('/auth/login', { email, password: given }))
  t.equal((await login(password)).statusCode, 200)
  for (let i = 0; i < 2; i++) t.equal((await login('not the right one')).statusCode, 401)
  const refresh = (refresh_token: unknown) => acme.anonymous(post('/auth/refresh', { refresh_token }))
  t.equal((await refresh(tokens.refresh_token)).statusCode, 200)
  t.equal((await refresh('nothing')).statusCode, 401)
  // the alias is the same route
  t.equal((await send(app, acme.host, { ...post('/auth/refresh', {}), url: '/api/auth/refresh' })).statusCode, 400)
  const page = await scrape(app)
  const seen = page.series
    .filter(({ name }) => name === 'aggios_sign_ins_total')
    .map(({ labels: { method, outcome }, value }) => `${method} ${outcome} ${value}`)
  t.strictSame(seen.sort(), [
    'password invalid_credentials 2',
    'password ok 1',
    'refresh invalid_refresh_token 1',
    'refresh ok 1',
    'refresh validation_failed 1',
    'register ok 1'
  ])
  t.equal(page.sum('aggios_problems_total', { code: 'invalid_credentials' }), 2)

  const paths = Object.values(app.swagger().paths ?? {}) as Record<string, { operationId?: string }>[]
  const operations = new Set(paths.flatMap((path) => Object.values(path).map(({ operationId }) => operationId)))
  for (const operation of Object.keys(signInMethods)) t.ok(operations.has(operation), operation)
})

t.test('ten thousand agencies have as many series as a few', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '1000000/1m', RATE_LIMIT_TENANT: '1000000/1m' })
  const agencies = 10_000
  const visited = 2000
  await asAdmin(
    app,
    `create temporary table made as select uuid_v7() as id, 'agency-' || n as slug from generate_series(1, ${agencies}) n;
     insert into tenants (id, slug, name) select id, slug, slug from made;
     insert into users (id, email, name) select id, slug || '@many.example', slug from made;
     insert into memberships (tenant_id, user_id, role) select id, id, 'owner' from made`
  )
  const made = (await allRows(app.database, 'select id, slug from tenants')) as { id: string; slug: string }[]
  const requests = 'http_request_duration_seconds_count'

  async function visit(some: typeof made): Promise<void> {
    for (let at = 0; at < some.length; at += 100) {
      await Promise.all(
        some.slice(at, at + 100).map(({ id, slug }) => {
          const email = `${slug}@many.example`
          const subject = { user_id: id, email, tenant_id: id, role: 'owner', sid: id, key_thumbprint: null } as const
          const { access_token } = app.tokens.issue(subject, 0)
          return send(app, `${slug}.localhost`, {
            url: '/api/v1/users/me',
            headers: { authorization: `Bearer ${access_token}` }
          })
        })
      )
    }
  }
  await visit(made.slice(0, 100))
  const before = await scrape(app)
  await visit(made.slice(100, visited))
  const after = await scrape(app)
  t.equal(after.sum(requests, { route: '/api/v1/users/me', status: '200' }), visited)
  t.equal(after.sum('aggios_limit_keys', { limit: 'tenant' }), visited, 'each is counted for itself')
  t.equal(after.series.length, before.series.length)
})

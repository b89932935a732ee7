import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import t from 'tap'
import { systemScope } from '../db/gate/gate-query.ts'
import { changesUnseen } from '../db/queries/directory.ts'
import { changePlan, setPlan } from '../db/queries/plans.ts'
import { endSession } from '../db/queries/sessions.ts'
import { changeTenant, setTenantStatus } from '../db/queries/tenant-status.ts'
import { withClient } from './databases.ts'
import {
  addMember,
  allRows,
  asOwner,
  createTenant,
  createTestDatabase,
  eventually,
  password,
  post,
  send,
  setStatus,
  startApp,
  type TestApp
} from './harness.ts'
import { me, sendAuthorization } from './requests.ts'
import { decode, sidOf } from './tokens.ts'

// bounded in time: how soon a revocation is in force

/*
 * A process knows the revocations that are in the database, also after a failover, a pause or a failed read.
 */

/** Replaces each further read of revocations by `act`. */
function onRead(app: TestApp, act: <T>(read: () => Promise<T>) => Promise<T>): void {
  const { query } = app.gate
  app.gate.query = (scope, statement, values) => {
    const read = () => query(scope, statement, values)
    return statement.name.startsWith('changes_') ? act(read) : read()
  }
}

t.test('what a failover has undone is not believed', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const status = async () => (await acme.send(me)).statusCode
  const published =
    "insert into changes (kind, subject, state, expires_at) values ('member', $1, 'viewer', now() + '1 day')"
  await asOwner(app.database, acme.id, acme.owner.id, [[published, [acme.owner.id]]])
  await eventually(async () => (await status()) === 401)

  await allRows(app.database, 'delete from changes')
  await app.revocations.readNow()
  t.equal(await status(), 401, 'nothing was noticed')
  let failures = 0
  onRead(app, (read) => (failures++ === 0 ? Promise.reject(new Error('Connection terminated')) : read()))
  await eventually(async () => (await status()) === 200)
  t.equal(app.revocations.stats().entries, 0)
})

t.test('another database that answers is not believed to have the same history', async (t) => {
  const app = await startApp(t)
  const there = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const status = async () => (await acme.send(me)).statusCode
  const { databaseUrl, ...secrets } = app.config

  await t.test('DATABASE_URL does not lead there while the process runs', async (t) => {
    // both could be used: a name of the same server is another place, too
    for (const url of [there.config.databaseUrl, String(databaseUrl).replace('127.0.0.1', 'localhost')]) {
      await app.secrets.renew({ ...secrets, databaseUrl: url })
      t.strictSame((await app.secrets.report()).refused, ['DATABASE_URL'])
    }
    await app.secrets.renew({ ...secrets, databaseUrl: `${databaseUrl}?application_name=other` })
    t.strictSame((await app.secrets.report()).refused, [])
    t.equal(await status(), 200)
  })

  await t.test('and a proxy that leads there makes everything be read again', async (t) => {
    // its transaction ids are lower than those that were seen here
    await withClient(there.database.postgres, async (client) => {
      const entry = `insert into changes (tenant_id, kind, subject, xid, expires_at) values ($1, 'session', $2, '5', now() + '1 day')`
      await client.query(entry, [acme.id, sidOf(acme.owner.tokens)])
    })
    await app.revocations.readNow()
    t.equal(await status(), 200)
    t.equal(app.readMemory.stats().entries, 1)
    const { query } = app.gate
    app.gate.query = (scope, statement, values) =>
      (statement.name.startsWith('changes_') ? there.gate.query : query)(scope, statement, values)
    await app.revocations.readNow()
    t.equal(app.readMemory.stats().entries, 0, 'nothing is remembered')
    await app.revocations.readNow()
    t.equal(await status(), 401, 'what was revoked there is')
  })
})

t.test('a process that was halted has missed nothing', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  t.equal((await acme.anonymous(me)).statusCode, 401)
  // one read, and then none for longer than a published entry lives
  let halts = 0
  onRead(app, async (read) => {
    const rows = await read()
    if (halts++ === 0) await sleep(5500)
    return rows
  })
  await eventually(() => app.revocations.stats().lag_ms > 1000)
  await asOwner(app.database, acme.id, acme.owner.id, [
    ["update tenants set slug = 'other' where id = $1", [acme.id]],
    ["insert into changes (kind, subject, state, expires_at) values ('tenant', $1, 'active', now() + '1 s')", [acme.id]]
  ])
  t.equal((await acme.anonymous(me)).statusCode, 401, 'as it is remembered')
  await eventually(async () => (await send(app, 'acme.localhost', me)).statusCode === 404, 15_000)
  t.equal((await send(app, 'other.localhost', me)).statusCode, 401)
})

t.test('of two plans that change at once neither change is missed', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const limit = (requests: number) => ({ name: 'slow', requests, window_seconds: 60, storage_quota: null })
  await app.gate.query(systemScope, setPlan, limit(10))
  await asOwner(app.database, acme.id, acme.owner.id, [["update tenants set plan = 'slow' where id = $1", [acme.id]]])
  await app.revocations.readNow()
  t.match(await app.tenants.limitsOf(acme.id), { requests: 10 })

  await withClient(app.database.postgres, async (client) => {
    await client.query('begin')
    await client.query("select set_plan('slow', 20, 60, null)")
    // it has the higher number, and commits first
    await app.gate.query(systemScope, setPlan, { ...limit(1), name: 'quick' })
    await app.revocations.readNow()
    t.match(await app.tenants.limitsOf(acme.id), { requests: 10 })
    await client.query('commit')
  })
  await app.revocations.readNow()
  t.match(await app.tenants.limitsOf(acme.id), { requests: 20 })
})

t.test('one subject has one living entry, which lives for as long as any of them would', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const entry = 'insert into changes (kind, subject, state, expires_at) values ($1, $2, $3, now() + $4::interval)'
  const roles = Array.from({ length: 300 }, (_, index) => (index % 2 === 0 ? 'viewer' : 'owner'))
  await asOwner(app.database, acme.id, acme.owner.id, [
    [entry, ['member', acme.owner.id, 'viewer', '1 day']],
    ...roles.map((role): [string, unknown[]] => [entry, ['member', acme.owner.id, role, '1 hour']]),
    [entry, ['tenant', acme.id, 'active', '1 hour']]
  ])
  const rows = await allRows(
    app.database,
    "select kind, state, expires_at > now() + interval '23 hours' as long from changes where kind <> 'agency' order by id"
  )
  t.strictSame(rows, [
    { kind: 'member', state: 'owner', long: true },
    { kind: 'tenant', state: 'active', long: false }
  ])
  await app.revocations.readNow()
  t.equal((await acme.send(me)).statusCode, 200, 'the last word counts')
})

t.test('a transaction that stays open makes nothing be read twice, and is read when it commits', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const many = 100_000
  let seen = ''
  const read = async () => {
    const rows = await app.gate.query(systemScope, changesUnseen, { seen })
    seen = rows[0]?.snapshot ?? ''
    return rows.length - 1
  }
  await withClient(app.database.postgres, async (client) => {
    await client.query('begin')
    await client.query(
      `insert into changes (tenant_id, kind, subject, state, expires_at)
       values ($1, 'member', $2, 'viewer', now() + interval '1 hour')`,
      [acme.id, acme.owner.id]
    )
    seen = (await allRows(app.database, 'select pg_current_snapshot()::text as seen'))[0].seen
    await asOwner(app.database, acme.id, acme.owner.id, [
      [
        `insert into changes (kind, subject, expires_at)
         select 'session', gen_random_uuid(), now() + interval '1 hour' from generate_series(1, $1::int)`,
        [many]
      ]
    ])
    t.equal(await read(), many)
    for (let polls = 0; polls < 3; polls++) t.equal(await read(), 0)
    const scanned = await allRows(
      app.database,
      `with read as materialized (select count(*) as n from changes_unseen('${seen}'))
       select n::int, (select idx_tup_fetch + seq_tup_read from pg_stat_xact_user_tables where relname = 'changes')::int as rows
       from read`
    )
    t.strictSame(scanned, [{ n: 1, rows: 0 }], 'nor looked at')
    await client.query('commit')
  })
  t.equal(await read(), 1)
  t.equal(await read(), 0)
  await eventually(async () => (await acme.send(me)).statusCode === 401)
})

t.test(
  'a read of everything again keeps what it finds, drops what it does not, and counts when it is whole',
  async (t) => {
    const app = await startApp(t)
    const acme = await createTenant(app, 'acme')
    const status = async (token: string) => (await acme.with(token, me)).statusCode
    const [kept, undone, late] = [await acme.signIn(), await acme.signIn(), await acme.signIn()]
    const signOut = (refresh_token: string) => send(app, 'localhost', post('/auth/logout', { refresh_token }))
    await signOut(kept.refresh_token)
    await signOut(undone.refresh_token)
    // as if a failover had lost it
    await allRows(app.database, 'delete from changes where id = (select max(id) from changes)')

    let failing = true
    let whole = () => {}
    const gap = new Promise<void>((done) => {
      whole = done
    })
    const { query } = app.gate
    app.gate.query = async (scope, statement, values) => {
      if (failing && statement.name === 'changes_unseen') throw new Error('Connection terminated')
      const rows = await query(scope, statement, values)
      // one that is published after its page was read
      if (statement.name === 'changes_page') await gap
      return rows
    }
    await app.revocations.readNow()
    failing = false
    const reading = app.revocations.readNow()
    await eventually(() => app.revocations.stats().lag_ms > 500)
    t.strictSame([await status(kept.access_token), await status(undone.access_token)], [401, 401], 'all that was known')
    const lagging = app.revocations.stats().lag_ms
    await query({ tenant_id: acme.id, user_id: null, request: '' }, endSession, {
      tenant_id: acme.id,
      session_id: sidOf(late),
      token_seconds: 1000,
      action: 'session.ended'
    })
    await eventually(() => app.revocations.stats().lag_ms > 5000, 15_000)
    t.ok(lagging < 5000)
    t.equal(await status(kept.access_token), 503, 'half of the facts are none')
    whole()
    await reading
    app.gate.query = query
    await app.revocations.readNow()
    await eventually(async () => (await status(kept.access_token)) === 401)
    t.equal(await status(late.access_token), 401)
    t.equal(await status(undone.access_token), 200)
  }
)

t.test('of what was swept the highest number is known, whatever was swept last', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  await app.revocations.readNow()
  await allRows(app.database, "delete from changes where kind in ('user', 'agency', 'usage')")
  const rename = 'update users set name = $2, version = version + 1 where id = $1'
  const seen = await withClient(app.database.postgres, async (client) => {
    // it began first, and writes last
    await client.query('begin')
    await client.query('select')
    await asOwner(app.database, acme.id, acme.owner.id, [["update tenants set name = 'Other'", []]])
    await client.query(rename, [acme.owner.id, 'Late'])
    const [{ seen }] = await allRows(app.database, 'select pg_current_snapshot()::text as seen')
    await client.query('commit')
    await client.query("update changes set expires_at = expires_at - interval '2 minutes'")
    // one at a time; what another transaction of the server may not have seen stays
    await eventually(async () => {
      await client.query('select sweep(1)')
      const { rows } = await client.query("select from changes where kind in ('user', 'agency')")
      return rows.length === 0
    })
    return seen as string
  })
  const rows = await app.gate.query(systemScope, changesUnseen, { seen })
  t.match(rows.slice(1), [{ kind: 'swept' }])
})

t.test('a plan or a name that changes beside a suspension leaves the agency suspended', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const scope = { tenant_id: acme.id, user_id: acme.owner.id, request: '' }
  const act = { action: 'tenant.suspended' as const, tokenSeconds: 1000 }
  await app.gate.query(systemScope, setPlan, { name: 'pro', requests: null, window_seconds: null, storage_quota: null })
  const changes = [
    () => app.gate.transaction(scope, (trx) => changePlan(trx, acme.id, 'pro')),
    () => app.gate.transaction(scope, (trx) => changeTenant(trx, acme.id, sql`name = 'Another name'`))
  ]
  for (const change of changes) {
    await app.gate.transaction(scope, (trx) =>
      setTenantStatus(trx, acme.id, { status: 'active', action: 'tenant.resumed', tokenSeconds: 1000 })
    )
    await app.revocations.readNow()
    t.equal((await acme.send(me)).statusCode, 200)
    let changed: Promise<unknown> = Promise.resolve()
    await app.gate.transaction(scope, async (trx) => {
      await setTenantStatus(trx, acme.id, { status: 'suspended', ...act })
      // it begins before the suspension commits, and waits for it
      changed = change()
      await eventually(async () => {
        const [row] = await allRows(
          app.database,
          "select count(*)::int as n from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        )
        return row.n > 0
      })
    })
    await changed
    await app.revocations.readNow()
    t.match((await acme.send(me)).json(), { status: 403, code: 'tenant_suspended' })
    const rows = await allRows(
      app.database,
      "select state, expires_at > now() + interval '10 minutes' as long from changes where kind = 'tenant'"
    )
    t.strictSame(rows, [{ state: 'suspended', long: true }])
  }
})

t.test('what ends a session is felt on every replica within a second', async (t) => {
  const database = await createTestDatabase(t)
  const near = await startApp(t, {}, database)
  const far = await startApp(t, {}, database)
  const acme = await createTenant(near, 'acme')
  const rival = await createTenant(near, 'rival')
  await addMember(near, acme, rival.owner.id, 'admin')
  const visit = async () =>
    (
      await send(near, 'localhost', {
        ...post('/auth/switch', { tenant: 'acme' }),
        headers: { authorization: `Bearer ${rival.owner.tokens.access_token}` }
      })
    ).json()
  /** How long `far` still accepts the token, counted from the reply. */
  const felt = async (token: string, code: string, act: () => Promise<unknown>) => {
    const before = await sendAuthorization(far, `Bearer ${token}`)
    // right after a poll, so that the wait for the next one is longest
    await eventually(() => far.revocations.stats().lag_ms < 20)
    await act()
    const waited = await eventually(async () => (await sendAuthorization(far, `Bearer ${token}`)).statusCode !== 200)
    return {
      before: before.statusCode,
      after: (await sendAuthorization(far, `Bearer ${token}`)).json().code,
      inTime: waited <= 1000,
      code
    }
  }
  const expected = (code: string) => ({ before: 200, after: code, inTime: true, code })

  await t.test('sign-out', async (t) => {
    const { access_token } = await acme.signIn()
    const act = () => acme.with(access_token, post('/auth/logout', undefined))
    t.strictSame(await felt(access_token, 'session_revoked', act), expected('session_revoked'))
    t.match((await sendAuthorization(near, `Bearer ${access_token}`)).json(), { code: 'session_revoked' })
    const restarted = await startApp(t, {}, database)
    t.match(
      (await sendAuthorization(restarted, `Bearer ${access_token}`)).json(),
      { code: 'session_revoked' },
      'and not forgotten'
    )
  })
  await t.test('a new role', async (t) => {
    const tokens = await visit()
    t.equal(decode(tokens.access_token).claims.role, 'admin')
    const act = () =>
      asOwner(database, acme.id, rival.owner.id, [
        ["update memberships set role = 'viewer' where user_id = $1", [rival.owner.id]],
        [
          "insert into changes (kind, subject, state, expires_at) values ('member', $1, 'viewer', now() + interval '1 day')",
          [rival.owner.id]
        ]
      ])
    t.strictSame(await felt(tokens.access_token, 'token_expired', act), expected('token_expired'))
    const renewed = await send(far, 'localhost', post('/auth/refresh', { refresh_token: tokens.refresh_token }))
    t.equal(decode(renewed.json().access_token).claims.role, 'viewer')
    t.equal((await sendAuthorization(far, `Bearer ${renewed.json().access_token}`)).json().role, 'viewer')
    t.equal(
      (await sendAuthorization(far, `Bearer ${rival.owner.tokens.access_token}`)).statusCode,
      200,
      'elsewhere nothing changed'
    )
  })
  await t.test('removal from the agency', async (t) => {
    const tokens = await visit()
    const act = () =>
      asOwner(database, acme.id, rival.owner.id, [
        ['delete from memberships where user_id = $1', [rival.owner.id]],
        [
          "insert into changes (kind, subject, state, expires_at) values ('member', $1, null, now() + interval '1 day')",
          [rival.owner.id]
        ]
      ])
    t.strictSame(await felt(tokens.access_token, 'session_revoked', act), expected('session_revoked'))
    const renewed = await send(far, 'localhost', post('/auth/refresh', { refresh_token: tokens.refresh_token }))
    t.equal(renewed.statusCode, 401)
    t.equal(
      (await sendAuthorization(far, `Bearer ${rival.owner.tokens.access_token}`)).statusCode,
      200,
      'elsewhere nothing changed'
    )
  })
  await t.test('suspension', async (t) => {
    const act = () => setStatus(near, acme, 'suspended')
    const seen = await felt(acme.owner.tokens.access_token, 'tenant_suspended', act)
    t.strictSame(seen, expected('tenant_suspended'))
    await setStatus(near, acme, 'active')
    await eventually(
      async () => (await sendAuthorization(far, `Bearer ${acme.owner.tokens.access_token}`)).statusCode === 200,
      1000
    )
  })
  await t.test('a new password', async (t) => {
    const { access_token } = await acme.signIn()
    const body = { current_password: password, new_password: 'an entirely different one' }
    const act = () => acme.send(post('/users/me/password', body))
    t.strictSame(await felt(access_token, 'session_revoked', act), expected('session_revoked'))
    t.equal(
      (await sendAuthorization(far, `Bearer ${acme.owner.tokens.access_token}`)).statusCode,
      200,
      'but for the one that did it'
    )
  })
})

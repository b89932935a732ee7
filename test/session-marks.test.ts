import t, { type Test } from 'tap'
import { openSession } from '../db/queries/sessions.ts'
import { withClient } from './databases.ts'
import {
  addMember,
  allRows,
  asOwner,
  createTenant,
  eventually,
  password,
  post,
  send,
  startApp,
  type Tenant,
  type TestApp,
  type Tokens
} from './harness.ts'
import { me } from './requests.ts'
import { sidOf } from './tokens.ts'

/*
 * One row, a mark, ends all sessions of a person in an agency. The number of open sessions is limited.
 */

const most = 100
const many = 20_000
const newPassword = 'the newest of all passwords'

const tokensFor = (
  app: TestApp,
  tenant: Tenant,
  sid: string,
  user = tenant.owner,
  role: 'owner' | 'member' = 'owner'
) => app.tokens.issue({ tenant_id: tenant.id, user_id: user.id, email: user.email, role, sid, key_thumbprint: null }, 0)
const refresh = (app: TestApp, { refresh_token }: Tokens) =>
  send(app, 'localhost', post('/auth/refresh', { refresh_token }))
const count = async (app: TestApp, text: string, values: unknown[] = []): Promise<number> =>
  Number((await allRows(app.database, `select count(*) from ${text}`, values))[0].count)

/** Inserts as many sessions as an attack on an older version could. Resolves to the first, one in the middle and the last. */
async function insertSessions(app: TestApp, tenantId: string, userId: string, count = many): Promise<string[]> {
  await asOwner(app.database, tenantId, userId, [
    [
      `insert into sessions (id, user_id, expires_at)
       select uuid_with_ms(clock_ms() - $2 + n, uuid_v7()), $1, now() + interval '1 day' from generate_series(1, $2::int) n`,
      [userId, count]
    ]
  ])
  const rows = await allRows(
    app.database,
    'select id from sessions where tenant_id = $1 and user_id = $2 and revoked_at is null order by id',
    [tenantId, userId]
  )
  return [rows[0].id, rows[rows.length >> 1].id, rows.at(-1).id]
}

async function allOver(t: Test, app: TestApp, tenant: Tenant, tokens: Tokens[]): Promise<void> {
  for (const each of tokens) {
    t.match((await tenant.with(each.access_token, me)).json(), { status: 401, code: 'session_revoked' })
    t.equal((await refresh(app, each)).statusCode, 401)
    t.equal((await tenant.with(each.access_token, post('/auth/switch', { tenant: tenant.slug }))).statusCode, 401)
  }
}

/** The number of rows of each table that were made or changed after the transaction `since`. */
async function written(app: TestApp, since: string): Promise<Record<string, number>> {
  const tables = ['sessions', 'memberships', 'changes', 'audit_events']
  const rows = await Promise.all(
    tables.map((table) => count(app, `${table} where xmin::text::bigint >= ${since}::bigint`))
  )
  return Object.fromEntries(tables.map((table, index) => [table, rows[index] as number]))
}
const nextTransaction = async (app: TestApp): Promise<string> =>
  (await allRows(app.database, 'select pg_snapshot_xmax(pg_current_snapshot())::text as x'))[0].x

t.test('a person has a hundred open sessions in an agency at most', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'member')
  const scope = { tenant_id: acme.id, user_id: acme.owner.id, request: '' }
  const proof = { authenticated_at: null, mfa_at: null, provider_id: null, by: null }
  const values = {
    ...scope,
    ...proof,
    key_thumbprint: null,
    session_seconds: 1000,
    token_seconds: 960,
    password_version: 1,
    action: 'session.opened'
  }
  const open = () => count(app, 'sessions where tenant_id = $1 and revoked_at is null', [acme.id])

  await t.test('one more ends the oldest, and one entry says so', async (t) => {
    const second = await acme.signIn()
    await Promise.all(Array.from({ length: 100 }, () => app.gate.query(scope, openSession, values)))
    await withClient(app.database.app, async (client) => {
      await client.query("select set_config('app.tenant_id', $1, false), set_config('app.user_id', $2, false)", [
        acme.id,
        acme.owner.id
      ])
      for (let opened = 100; opened < 3000; opened += 100) {
        await client.query("select open_session($1, '1 hour', '1 hour') from generate_series(1, 100)", [acme.owner.id])
      }
    })
    t.equal(await open(), most)
    t.equal(await count(app, 'sessions where tenant_id = $1', [acme.id]), 3002)
    t.equal(await count(app, 'revocations where tenant_id = $1', [acme.id]), 1)
    await app.revocations.readNow()
    await allOver(t, app, acme, [acme.owner.tokens, second])
    const [reason] = await allRows(
      app.database,
      "select detail from audit_events where session_id = $1 and action = 'session.ended'",
      [sidOf(second)]
    )
    t.strictSame(reason, { detail: { reason: 'too_many' } })
  })
  await t.test('no two of them have one millisecond', async (t) => {
    const [row] = await allRows(
      app.database,
      'select count(distinct uuid_ms(id))::int as n from sessions where tenant_id = $1',
      [acme.id]
    )
    t.equal(row.n, 3002)
  })
  await t.test('by way of sign-in and of switch', async (t) => {
    const before = await acme.signIn()
    const there: Tokens = (await acme.with(before.access_token, post('/auth/switch', { tenant: 'rival' }))).json()
    const here: Tokens = (await rival.with(there.access_token, post('/auth/switch', { tenant: 'acme' }))).json()
    t.equal(await open(), most)
    for (const { access_token } of [before, here]) t.equal((await acme.with(access_token, me)).statusCode, 200)
    t.equal((await acme.with(here.access_token, '/api/v1/users/me/sessions?limit=100')).json().data.length, 100)
  })
  await t.test('the one that was spared by a mark goes first', async (t) => {
    const spared = await acme.signIn()
    t.equal((await acme.with(spared.access_token, { method: 'DELETE', url: `${me}/sessions` })).statusCode, 204)
    t.equal(await open(), 1)
    const [next] = await app.gate.query(scope, openSession, values)
    for (let opened = 2; opened < most; opened++) await app.gate.query(scope, openSession, values)
    await app.revocations.readNow()
    t.equal((await acme.with(spared.access_token, me)).statusCode, 200)
    await app.gate.query(scope, openSession, values)
    await app.revocations.readNow()
    await allOver(t, app, acme, [spared])
    const second = tokensFor(app, acme, next?.session_id as string)
    t.equal((await acme.with(second.access_token, me)).statusCode, 200)
    t.equal(await open(), most)
  })
})

t.test('20,000 sessions end at once, by rows that can be counted', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  for (const [act, request] of [
    ['signing out everywhere else', { method: 'DELETE', url: `${me}/sessions` }],
    ['a new password', post('/users/me/password', { current_password: password, new_password: newPassword })]
  ] as const) {
    await t.test(act, async (t) => {
      const current = (await send(app, acme.host, post('/auth/login', { email: acme.owner.email, password }))).json()
      const others = (await insertSessions(app, acme.id, acme.owner.id)).map((sid) => tokensFor(app, acme, sid))
      // the last may be the current session, which was opened before them
      const since = await nextTransaction(app)
      t.equal((await acme.with(current.access_token, request)).statusCode, 204)
      const { sessions = 0, audit_events = 0, ...rest } = await written(app, since)
      t.ok(sessions <= most && audit_events <= 2, `${sessions} sessions and ${audit_events} events were written`)
      t.strictSame(rest, { memberships: 1, changes: 1 })
      await allOver(
        t,
        app,
        acme,
        others.filter(({ access_token }) => sidOf({ access_token } as Tokens) !== sidOf(current))
      )
      t.equal((await acme.with(current.access_token, me)).statusCode, 200)
      t.equal((await acme.with(current.access_token, `${me}/sessions`)).json().data.length, 1)
      t.equal((await refresh(app, current)).statusCode, 200)
    })
  }

  await t.test('by an admin, and by removal, after which who comes back has new ones only', async (t) => {
    const other = await createTenant(app, 'other')
    const guest = other.owner
    await addMember(app, acme, guest.id, 'member')
    const owner: Tokens = (
      await send(app, acme.host, post('/auth/login', { email: acme.owner.email, password: newPassword }))
    ).json()
    const act = (url: string) =>
      acme.with(owner.access_token, { method: 'DELETE', url: `/api/v1/members/${guest.id}${url}` })
    for (const url of ['/sessions', '']) {
      const sids = await insertSessions(app, acme.id, guest.id)
      const tokens = sids.map((sid) => tokensFor(app, acme, sid, guest, 'member'))
      t.equal((await acme.with(tokens[2]?.access_token as string, me)).statusCode, 200)
      const since = await nextTransaction(app)
      t.equal((await act(url)).statusCode, 204)
      const rows = await written(app, since)
      t.ok((rows.sessions ?? 0) <= most)
      t.equal(rows.changes, url === '' ? 3 : 1, 'a removal changes the agency that a read shows, too')
      await allOver(t, app, acme, tokens)
      if (url !== '') continue
      const left = 'sessions where tenant_id = $1 and user_id = $2'
      t.ok((await count(app, left, [acme.id, guest.id])) >= 2 * many - 1000 - 2 * most, 'removal removes a thousand')
      await addMember(app, acme, guest.id, 'member')
      const entry =
        "insert into changes (kind, subject, state, expires_at) values ('member', $1, 'member', now() + interval '1 day')"
      await asOwner(app.database, acme.id, guest.id, [[entry, [guest.id]]])
      await app.revocations.readNow()
      await allOver(t, app, acme, tokens)
      const fresh: Tokens = (await send(app, acme.host, post('/auth/login', { email: guest.email, password }))).json()
      t.equal((await acme.with(fresh.access_token, me)).statusCode, 200)
      t.equal((await refresh(app, fresh)).statusCode, 200)
    }
  })

  await t.test('and are swept when no token of theirs lives', async (t) => {
    const ended =
      'sessions s left join memberships m using (tenant_id, user_id) where s.revoked_at is not null or session_is_over(s.id, m.ended_through, m.kept_session)'
    t.ok((await count(app, ended)) > 3 * many)
    await allRows(app.database, "update changes set expires_at = now() - interval '1 second'")
    await allRows(app.database, "update sessions set revoked_at = revoked_at - interval '1 year'")
    await withClient(app.database.app, async (client) => {
      for (const text of ['sweep(10000)', "sweep_sessions(10000, '7 days')"]) {
        for (let rounds = 0; ; rounds++) {
          const { rows } = await client.query(`select ${text}::int as removed`)
          t.ok(rows[0].removed <= 20_000, 'a part at a time')
          if (rows[0].removed < 10_000) break
          if (rounds > 200) throw new Error('sweeping has no end')
        }
      }
    })
    t.equal(await count(app, ended), 0)
    t.equal(await count(app, 'revocations'), 0)
    t.ok((await count(app, 'sessions')) >= 2, 'open ones stay')
  })
})

t.test('a mark can not be undone, nor passed by a clock', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const endAll = (token: string) => acme.with(token, { method: 'DELETE', url: `${me}/sessions` })

  await t.test('by an ended session that asks to be spared', async (t) => {
    const thief = await acme.signIn()
    const { owner } = acme
    // this process has not read the revocation yet
    await allRows(app.database, 'update sessions set revoked_at = null')
    await asOwner(app.database, acme.id, owner.id, [
      ['update memberships set ended_through = session_mark(clock_ms() + 1), kept_session = $1', [sidOf(owner.tokens)]]
    ])
    t.equal((await endAll(thief.access_token)).statusCode, 204)
    const [mark] = await allRows(app.database, 'select kept_session from memberships')
    t.equal(mark.kept_session, null)
    t.equal((await refresh(app, thief)).statusCode, 401)
    t.equal((await refresh(app, owner.tokens)).statusCode, 401)
  })
  await t.test('by a database whose clock is behind', async (t) => {
    await asOwner(app.database, acme.id, acme.owner.id, [
      ['update memberships set ended_through = session_mark(clock_ms() + 3600000), kept_session = null', []]
    ])
    const later = await acme.signIn()
    const latest = await acme.signIn()
    t.ok(sidOf(later) < sidOf(latest))
    t.equal((await refresh(app, later)).statusCode, 200)
    t.equal((await endAll(latest.access_token)).statusCode, 204)
    t.equal((await refresh(app, later)).statusCode, 401)
    await eventually(async () => (await acme.with(later.access_token, me)).statusCode === 401)
    t.equal((await acme.with(latest.access_token, me)).statusCode, 200)
  })
  await t.test('by a session that is opened meanwhile', async (t) => {
    const sessions = await Promise.all(
      Array.from({ length: 6 }, async (_, index) => {
        const tokens = await acme.signIn()
        if (index % 3 === 0) await allRows(app.database, 'select 1')
        return tokens
      })
    )
    await withClient(app.database.postgres, async (client) => {
      await client.query('begin')
      await client.query("select set_config('app.user_id', $1, true)", [acme.owner.id])
      await client.query("select end_my_sessions(null, null, '1 hour')")
      const waiting = acme.signIn()
      await eventually(
        async () =>
          (await count(app, "pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()")) > 0
      )
      await client.query('commit')
      t.equal((await refresh(app, await waiting)).statusCode, 200, 'one that waited for the mark is after it')
    })
    await app.revocations.readNow()
    await allOver(t, app, acme, sessions)
  })
})

t.test('a process of the version before hears of each session that a mark has ended', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const [first, second] = [await acme.signIn(), await acme.signIn()]
  t.equal((await acme.with(second.access_token, { method: 'DELETE', url: `${me}/sessions` })).statusCode, 204)
  const told = await allRows(
    app.database,
    "select kind, subject from revocations_since('0') where kind = 'session' order by subject"
  )
  t.strictSame(
    told,
    [acme.owner.tokens, first].map((tokens) => ({ kind: 'session', subject: sidOf(tokens) }))
  )
  const ended = await allRows(app.database, 'select id from sessions where revoked_at is not null order by id')
  t.strictSame(
    ended.map(({ id }) => id),
    [acme.owner.tokens, first].map(sidOf),
    'and finds it in their rows'
  )
})

t.test(
  'a revocation lives a minute longer than tokens: a process whose clock is ahead may have made one',
  async (t) => {
    const app = await startApp(t, { ACCESS_TOKEN_TTL: '100' })
    const acme = await createTenant(app, 'acme')
    const [one, other] = [await acme.signIn(), await acme.signIn()]
    const drop = (url: string) => acme.with(other.access_token, { method: 'DELETE', url: me + url })
    await drop(`/sessions/${sidOf(one)}`)
    await drop('/sessions')
    await send(app, 'localhost', post('/auth/logout', { refresh_token: other.refresh_token }))
    const last = await acme.signIn()
    const stolen: Tokens = (await refresh(app, last)).json()
    await allRows(
      app.database,
      "update sessions set rotated_at = now() - interval '1 day', expires_at = now() + interval '1 day'"
    )
    await refresh(app, { ...stolen, refresh_token: last.refresh_token })
    const lives = await allRows(
      app.database,
      'select kind, round(extract(epoch from expires_at - created_at))::int as seconds from revocations order by kind, id'
    )
    t.ok(lives.length >= 3)
    for (const { kind, seconds } of lives) t.equal(seconds, 160, kind)
  }
)

import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { seal } from './audit-log.ts'
import { allRows, createTenant, post, send, startApp, type Tenant, type TestApp } from './harness.ts'

// bounded in time: how long a part of a check takes

/*
 * A long audit log is verified in parts. Each part takes a bounded time, and one verification runs at a time.
 */

const path = '/api/v1/audit-events/verify'
const part = async (tenant: Tenant, cursor?: string | null) =>
  (await tenant.send(cursor ? `${path}?cursor=${cursor}` : path)).json()

/** Delays each segment in the database. Counts the segments, and how many were read at the same time. */
function slowDown(t: Test, app: TestApp, ms: number) {
  const { query } = app.gate
  const seen = { all: 0, most: 0, startedAt: [] as number[], endedAt: [] as number[] }
  let now = 0
  app.gate.query = async (scope, statement, values) => {
    if (statement.name !== 'check_next_seal') return query(scope, statement, values)
    seen.all++
    seen.most = Math.max(seen.most, ++now)
    seen.startedAt.push(performance.now())
    await sleep(ms)
    return query(scope, statement, values).finally(() => {
      now--
      seen.endedAt.push(performance.now())
    })
  }
  t.teardown(() => {
    app.gate.query = query
  })
  return seen
}

t.test('a log of an agency in six segments', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await seal(app)
  for (const action of ['one', 'two', 'three', 'four', 'five']) {
    await allRows(app.database, 'insert into audit_events (tenant_id, action) values ($1, $2)', [acme.id, action])
    await seal(app)
  }
  const whole = await part(acme)
  t.match(whole, { status: 'intact', sealed_events: 6, broken: null, next_cursor: null })

  t.test('is checked in parts', async (t) => {
    const seen = slowDown(t, app, 260)
    const first = await part(acme)
    t.match(first, { status: 'intact', sealed_events: 2, broken: null, next_cursor: /^.+$/ })
    t.equal(seen.all, 2, 'one request costs no more')
    const second = await part(acme, first.next_cursor)
    t.match(second, { status: 'intact', sealed_events: 4 })
    const third = await part(acme, second.next_cursor)
    t.match(third, { status: 'intact', sealed_events: 6 })
    t.strictSame(await part(acme, third.next_cursor), whole, 'the last says what one request would')

    const { statusCode } = await rival.send(`${path}?cursor=${first.next_cursor}`)
    t.equal(statusCode, 400, 'a cursor belongs to its agency')
    await allRows(app.database, "update audit_events set action = 'six' where tenant_id = $1 and action = 'three'", [
      acme.id
    ])
    t.match(await part(acme, first.next_cursor), { status: 'broken', broken: { segment: 4, reason: 'changed' } })
    await allRows(app.database, "update audit_events set action = 'three' where tenant_id = $1 and action = 'six'", [
      acme.id
    ])
    await allRows(app.database, 'update audit_seals set digest = sha256(digest) where tenant_id = $1 and seq = 2', [
      acme.id
    ])
    t.match(await part(acme, first.next_cursor), { status: 'broken', broken: { reason: 'unchained' } })
  })

  t.test('is checked beside others, one segment at a time, and the database rests as long as it works', async (t) => {
    const created = await rival.send(post('/tenants', { name: 'The second agency', slug: 'second' }))
    t.equal(created.statusCode, 201)
    const { access_token } = (await rival.send(post('/auth/switch', { tenant: 'second' }))).json()
    const third = await createTenant(app, 'third')
    const seen = slowDown(t, app, 100)
    const elsewhere = () =>
      send(app, 'second.localhost', { url: path, headers: { authorization: `Bearer ${access_token}` } })
    const replies = await Promise.all([acme.send(path), rival.send(path), elsewhere(), third.send(path)])
    const codes = replies.map(({ statusCode }) => statusCode)
    t.strictSame(codes, [200, 200, 429, 200], 'once at a time for a person')
    t.match(replies[2]?.headers['retry-after'], /^[1-9]\d*$/)
    t.equal(seen.most, 1)
    const pauses = seen.startedAt.slice(1).map((at, i) => at - (seen.endedAt[i] as number))
    t.ok(pauses.length > 2 && pauses.every((ms) => ms >= 95), `pauses of ${pauses.map(Math.round)} ms`)
    t.equal((await elsewhere()).statusCode, 200)
  })
})

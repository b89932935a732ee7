import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { maxStreams } from '../plugins/events/event-streams.ts'
import { nameResumePoint } from '../src/events/resume-points.ts'
import { createParser, openEvents, type Reader } from './event-reader.ts'
import {
  addMember,
  allRows,
  createTenant,
  eventually,
  password,
  post,
  send,
  setStatus,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { listen, unknownId } from './requests.ts'
import { decode } from './tokens.ts'

// bounded in time: how soon an event is sent, and a stream ends

/*
 * GET /events: who sees which event, in which order, from where on, and when a stream ends.
 */

/** A member of an agency who has an agency of their own, too. */
async function join(app: TestApp, tenant: Tenant, name: string, role: string) {
  const own = await createTenant(app, name)
  await addMember(app, tenant, own.owner.id, role)
  const { email, id } = own.owner
  const signIn = async () =>
    (await send(app, tenant.host, post('/auth/login', { email, password }))).json().access_token as string
  return { id, email, signIn, token: await signIn() }
}

const types = (reader: Reader) => reader.messages.map(({ event }) => event)
const rename = (tenant: Tenant, name: string) =>
  tenant.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { name } })

t.test('what happens is sent as it happens', async (t) => {
  const app = await startApp(t)
  const port = await listen(app)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const open = (tenant: Tenant, token = tenant.owner.tokens.access_token, lastId?: string) =>
    openEvents(t, { port, host: tenant.host, token, ...(lastId !== undefined && { lastId }) })

  // what was committed before
  await app.events.run()
  const reader = await open(acme)
  const other = await open(rival)
  t.equal(reader.status, 200)
  t.match(reader.headers, { 'content-type': /^text\/event-stream/, 'cache-control': 'no-store' })
  await rename(acme, 'Acme 0')
  const ms = await eventually(() => reader.messages.length > 0)
  t.ok(ms < 1000, `after ${Math.round(ms)} ms`)

  t.test('an event has the id of its row in the audit log', async (t) => {
    const [row] = (await acme.send('/api/v1/audit-events?action=tenant.updated')).json().data
    const { position, ...data } = reader.messages[0]?.data ?? {}
    const { ip: _, user_agent: __, request_id: ___, action, ...logged } = row
    t.match(reader.messages[0], { id: row.id, event: 'tenant.updated' })
    t.strictSame(data, { ...logged, type: action })
    t.type(position, 'number')
  })

  t.test('events come in their order, each once, and to every reader alike', async (t) => {
    const second = await open(acme)
    const before = reader.messages.length
    await Promise.all(Array.from({ length: 50 }, (_, n) => rename(acme, `Acme again ${n}`)))
    await eventually(() => reader.messages.length === before + 50 && second.messages.length === 50)
    const positions = reader.messages.map(({ data }) => data.position as number)
    t.strictSame(
      positions,
      [...positions].sort((a, b) => a - b)
    )
    t.equal(new Set(positions).size, positions.length)
    t.strictSame(second.messages, reader.messages.slice(before))
    second.close()
  })

  t.test('another agency sees none of it', async (t) => {
    await rename(rival, 'Rival')
    await eventually(() => other.messages.length > 0)
    t.strictSame(types(other), ['tenant.updated'])
    t.match(other.messages[0]?.data, { target_id: rival.id })
  })

  t.test('HEAD has the headers, and opens no stream', async (t) => {
    const reply = await acme.send({ method: 'HEAD', url: '/api/v1/events' })
    t.equal(reply.statusCode, 200)
    t.match(reply.headers['content-type'], 'text/event-stream')
  })
})

t.test('a reader goes on where they were', async (t) => {
  const app = await startApp(t)
  const port = await listen(app)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const token = acme.owner.tokens.access_token
  const open = (lastId?: string, path?: string) =>
    openEvents(t, { port, host: acme.host, token, ...(lastId !== undefined && { lastId }), ...(path && { path }) })
  await app.events.run()
  const reader = await open()
  for (let n = 0; n < 5; n++) await rename(acme, `Acme ${n}`)
  await eventually(() => reader.messages.length === 5)
  reader.close()

  t.test('wherever the bytes were cut', async (t) => {
    const text = reader.text()
    for (let cut = text.indexOf('\n\n') + 2; cut <= text.length; cut += 7) {
      const parser = createParser()
      parser.take(text.slice(0, cut))
      const rest = await open(parser.lastId())
      await eventually(() => parser.messages.length + rest.messages.length >= 5)
      t.strictSame([...parser.messages, ...rest.messages], reader.messages, `after ${cut} bytes`)
      rest.close()
    }
  })

  t.test('by the parameter as well, for those that can not send the header', async (t) => {
    const rest = await open(undefined, `/api/v1/events?last_event_id=${reader.messages[3]?.id}`)
    await eventually(() => rest.messages.length === 1)
    t.strictSame(rest.messages, reader.messages.slice(4))
    rest.close()
  })

  t.test('before the first event, too', async (t) => {
    const first = await open()
    await eventually(() => first.lastId() !== '')
    first.close()
    await rename(acme, 'Acme in between')
    const next = await open(first.lastId())
    await eventually(() => next.messages.length === 1)
    t.match(next.messages[0]?.data, { type: 'tenant.updated' })
    next.close()
  })

  t.test('an id that leads nowhere is told so', async (t) => {
    const [{ id: foreign }] = (await rival.send('/api/v1/audit-events')).json().data
    const monthsAgo = Date.now() - 31 * 86_400_000
    const ids = {
      unknown: unknownId,
      foreign,
      'no id': 'x y',
      'too old': nameResumePoint({ position: 1, at: monthsAgo }),
      'of events that a failover has lost': nameResumePoint({ position: (Date.now() + 60_000) * 1000, at: Date.now() })
    }
    for (const [what, id] of Object.entries(ids)) {
      const lost = await open(id)
      await eventually(() => lost.messages.length > 0)
      t.match(lost.messages, [{ event: 'reset', data: {} }], what)
      t.not(lost.lastId(), id)
      await rename(acme, `Acme after ${what}`)
      await eventually(() => lost.messages.length > 1)
      t.strictSame(types(lost), ['reset', 'tenant.updated'])
      lost.close()
      // the place that a reset names is good
      const again = await open(lost.messages[0]?.id)
      await eventually(() => again.messages.length > 0)
      t.strictSame(again.messages, lost.messages.slice(1))
      again.close()
    }
  })

  t.test('an event that was removed after its month is unknown', async (t) => {
    const [first] = reader.messages
    await allRows(app.database, 'delete from events where id = $1', [first?.id])
    const lost = await open(first?.id)
    await eventually(() => lost.messages.length > 0)
    t.strictSame(types(lost), ['reset'])
    lost.close()
  })

  t.test('through a backlog of many pages', async (t) => {
    const start = await open()
    await eventually(() => start.lastId() !== '')
    start.close()
    await allRows(
      app.database,
      `insert into audit_events (tenant_id, action, actor_id)
       select $1, 'file.created', $2 from generate_series(1, 5000)`,
      [acme.id, acme.owner.id]
    )
    const behind = await open(start.lastId())
    await eventually(() => behind.messages.length >= 5000)
    await rename(acme, 'Acme at the end')
    await eventually(() => types(behind).includes('tenant.updated'))
    const positions = behind.messages.map(({ data }) => data.position as number)
    t.strictSame(
      positions,
      [...new Set(positions)].sort((a, b) => a - b)
    )
    t.equal(positions.length, 5001)
    behind.close()
  })
})

t.test('people see what they may', async (t) => {
  const app = await startApp(t)
  const port = await listen(app)
  const acme = await createTenant(app, 'acme')
  const admin = await join(app, acme, 'admins', 'admin')
  const member = await join(app, acme, 'members', 'member')
  const viewer = await join(app, acme, 'viewers', 'viewer')
  const open = (token: string) => openEvents(t, { port, host: acme.host, token })
  await app.events.run()
  const [owners, admins, members, viewers] = await Promise.all(
    [acme.owner.tokens.access_token, admin.token, member.token, viewer.token].map(open)
  )
  if (!owners || !admins || !members || !viewers) throw new Error('a stream is missing')

  await acme.send(post('/invitations', { email: 'new@example.com', role: 'viewer' }))
  const invited = await acme.send(`/api/v1/audit-events?action=invitation.created`)
  await member.signIn()
  // a change of role ends the stream at once, whatever is on its way to it
  await eventually(() => types(admins).includes('session.opened'))
  await acme.send({ method: 'PATCH', url: `/api/v1/members/${admin.id}`, payload: { role: 'owner' } })
  await rename(acme, 'The end')
  const seen = [owners, members, viewers]
  await eventually(() => seen.every((each) => types(each).includes('tenant.updated')))

  t.strictSame(types(owners), ['invitation.created', 'session.opened', 'member.role_changed', 'tenant.updated'])
  t.strictSame(types(admins).slice(0, 2), ['invitation.created', 'session.opened'])
  t.strictSame(types(members), ['session.opened', 'member.role_changed', 'tenant.updated'], 'their own, too')
  t.strictSame(types(viewers), ['member.role_changed', 'tenant.updated'])
  t.match(owners.messages[0]?.data, { detail: invited.json().data[0].detail, session_id: null })
  for (const { data } of [...members.messages, ...viewers.messages]) {
    t.strictSame(Object.keys(data), ['id', 'type', 'created_at', 'position', 'actor_id', 'target_id'])
  }
  t.notMatch(members.text() + viewers.text(), 'new@example.com')
})

t.test('a stream ends within a second of what ends its right', async (t) => {
  const app = await startApp(t)
  const port = await listen(app)
  const acme = await createTenant(app, 'acme')
  const open = (token: string) => openEvents(t, { port, host: acme.host, token })
  const stays = await open(acme.owner.tokens.access_token)

  let count = 0
  const person = () => join(app, acme, `person${count++}`, 'member')
  type Person = Awaited<ReturnType<typeof person>>
  const asPerson = ({ token }: Person, options: object) => acme.with(token, options as never)
  const reasons: Record<string, (who: Person) => Promise<unknown>> = {
    'their membership': ({ id }) => acme.send({ method: 'DELETE', url: `/api/v1/members/${id}` }),
    'their role': ({ id }) => acme.send({ method: 'PATCH', url: `/api/v1/members/${id}`, payload: { role: 'viewer' } }),
    'their session': (who) => asPerson(who, post('/auth/logout', {})),
    'their sessions here': ({ id }) => acme.send({ method: 'DELETE', url: `/api/v1/members/${id}/sessions` }),
    'their password': (who) =>
      asPerson(
        { ...who },
        post('/users/me/password', { current_password: password, new_password: 'another horse battery' })
      )
  }
  for (const [what, act] of Object.entries(reasons)) {
    const who = await person()
    // a change of the password keeps the session that makes it
    const reader = await open(what === 'their password' ? await who.signIn() : who.token)
    t.equal(reader.status, 200)
    const reply = (await act(who)) as { statusCode: number; body: string }
    const elapsed = stopwatch()
    t.ok(reply.statusCode < 300, `${what}: ${reply.statusCode} ${reply.body}`)
    await reader.ended
    t.ok(elapsed() < 1000, `${what}: ${Math.round(elapsed())} ms`)
  }

  await t.test('its time', async (t) => {
    const brief = await startApp(t, { ACCESS_TOKEN_TTL: '3' }, app.database)
    const reply = await send(brief, acme.host, post('/auth/login', { email: acme.owner.email, password }))
    const { access_token } = reply.json()
    const { exp } = decode(access_token).claims as { exp: number }
    const reader = await openEvents(t, { port: await listen(brief), host: acme.host, token: access_token })
    t.equal(reader.status, 200)
    await reader.ended
    const late = Date.now() - exp * 1000
    t.ok(late >= 0 && late < 1000, `${late} ms after its end`)
  })

  t.ok(stays.isOpen(), 'that of somebody else goes on')
  await setStatus(app, acme, 'suspended')
  const elapsed = stopwatch()
  await stays.ended
  t.ok(elapsed() < 1000, `of a suspended agency: ${Math.round(elapsed())} ms`)
})

t.test('another process ends streams within a second, too', async (t) => {
  const app = await startApp(t)
  const there = await startApp(t, {}, app.database)
  const acme = await createTenant(app, 'acme')
  const who = await join(app, acme, 'somebody', 'member')
  const reader = await openEvents(t, { port: await listen(there), host: acme.host, token: who.token })
  t.equal(reader.status, 200)
  await rename(acme, 'Acme')
  const ms = await eventually(() => reader.messages.length > 0)
  t.ok(ms < 2000, `an event of the other process after ${Math.round(ms)} ms`)
  const elapsed = stopwatch()
  await acme.send({ method: 'DELETE', url: `/api/v1/members/${who.id}` })
  await reader.ended
  t.ok(elapsed() < 1000, `${Math.round(elapsed())} ms`)
})

t.test('streams have limits', async (t) => {
  const app = await startApp(t, { EVENT_STREAMS: '15' })
  const port = await listen(app)
  const acme = await createTenant(app, 'acme')
  const open = (token: string) => openEvents(t, { port, host: acme.host, token })
  const token = acme.owner.tokens.access_token
  const mine = await Promise.all(Array.from({ length: maxStreams.person }, () => open(token)))
  t.ok(mine.every(({ status }) => status === 200))

  t.test('of one person', async (t) => {
    const over = await open(token)
    t.match(over, { status: 429, headers: { 'retry-after': '5', 'content-type': /problem\+json/ } })
    await over.ended
    t.match(JSON.parse(over.text()), { code: 'rate_limited' })
  })
  t.test('of a process', async (t) => {
    const others = [await join(app, acme, 'first', 'member'), await join(app, acme, 'second', 'member')]
    const rest = await Promise.all(Array.from({ length: 5 }, () => open(others[0]?.token as string)))
    t.ok(rest.every(({ status }) => status === 200))
    t.match(await open(others[1]?.token as string), { status: 503, headers: { 'retry-after': '5' } })
    rest[0]?.close()
    await eventually(async () => {
      const again = await open(others[1]?.token as string)
      again.close()
      return again.status === 200
    })
  })
  t.test('and do not count as requests under way', async (t) => {
    for (let n = 0; n < 20; n++) {
      const reader = await open(token)
      t.equal(reader.status, 429)
    }
    t.equal((await acme.send('/api/v1/users/me')).statusCode, 200)
  })
  t.test('a place is free again when its reader has gone', async (t) => {
    mine[0]?.close()
    await eventually(async () => {
      const reader = await open(token)
      if (reader.status === 200) mine.push(reader)
      return reader.status === 200
    })
    t.equal((await open(token)).status, 429)
  })
})

t.test('a reader who takes nothing costs nothing', async (t) => {
  const app = await startApp(t)
  const port = await listen(app)
  const acme = await createTenant(app, 'acme')
  const token = acme.owner.tokens.access_token
  await app.events.run()
  const sockets = new Set<Socket>()
  app.server.on('connection', (socket: Socket) => sockets.add(socket))
  const slow = await openEvents(t, { port, host: acme.host, token })
  const quick = await openEvents(t, { port, host: acme.host, token })
  slow.pause()
  const count = 20_000
  await allRows(
    app.database,
    `insert into audit_events (tenant_id, action, actor_id, detail)
     select $1, 'file.created', $2, jsonb_build_object('text', repeat('x', 1000)) from generate_series(1, $3::int)`,
    [acme.id, acme.owner.id, count]
  )
  await eventually(() => quick.messages.length === count, 60_000)
  await sleep(200)
  const buffered = [...sockets].map(({ writableLength }) => writableLength)
  t.ok(Math.max(...buffered) < 300_000, `of ${count * 1300} bytes ${Math.max(...buffered)} are kept`)
  slow.resume()
  await eventually(() => slow.messages.length === count, 60_000)
  t.strictSame(
    slow.messages.map(({ id }) => id),
    quick.messages.map(({ id }) => id)
  )
})

t.test('streams end when another database answers that lacks the newest events, and are read anew', async (t) => {
  const app = await startApp(t)
  const port = await listen(app)
  const acme = await createTenant(app, 'acme')
  const token = acme.owner.tokens.access_token
  await app.events.run()
  const reader = await openEvents(t, { port, host: acme.host, token })
  await rename(acme, 'Lost')
  await eventually(() => reader.messages.length === 1)
  await allRows(
    app.database,
    'delete from events where position = (select position from event_horizon); update event_horizon set position = position - 1'
  )
  await reader.ended
  const lastId = reader.messages[0]?.id as string
  const next = await openEvents(t, { port, host: acme.host, token, lastId })
  await eventually(() => next.messages.length > 0)
  t.match(next.messages[0], { event: 'reset' })
  await rename(acme, 'Found')
  await eventually(() => types(next).includes('tenant.updated'))
})

import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import { availableParallelism } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { withClient } from './databases.ts'
import { eventually, startApp, startServer } from './harness.ts'
import {
  api,
  call,
  descriptors,
  largest,
  latencies,
  login,
  openSlow,
  percentile,
  proveItStillRuns,
  proveNoSecretLeft,
  residentMiB,
  secretPassword,
  startTarget
} from './hostile-clients.ts'

// bounded in time: answers to honest clients during an attack
// rehearsal: floods, slow clients and clients that go

/*
 * A server gets more than it can do: internal errors, floods of requests, and slow connections. The slow connections are tried on a
 * second server meanwhile, because they take as long as the time-outs of the product.
 */

t.test('nothing that a client sends brings the process down', async (t) => {
  const target = await startTarget(t)
  const { database, server, agent, acme, me, signIn } = target
  const held = await startServer(t, { ...target.env, LOG_LEVEL: 'info' })

  // slow connections: the latency of other requests is measured now, and the time-outs at the end of this test
  const paths = [`${api}/users/me`, `${api}/tenant`, `${api}/health/live`]
  await latencies(agent, held, paths, 10, acme.access_token)
  const baseline = await latencies(agent, held, paths, 40, acme.access_token)
  const before = { descriptors: descriptors(held), resident: residentMiB(held) }
  const slow = openSlow(held, { headers: 150, body: 150, reader: 50 })
  t.teardown(slow.close)
  await eventually(() => descriptors(held) >= before.descriptors + 300, 10_000)
  const attacked = await latencies(agent, held, paths, 40, acme.access_token)

  t.test('what goes wrong in one request is the end of that one only', async (t) => {
    const rename = (from: string, to: string) =>
      withClient(database.postgres, (client) => client.query(`alter table ${from} rename to ${to}`))
    await rename('users', 'users_elsewhere')
    const both = await Promise.all(
      Array.from({ length: 40 }, async (_, i) =>
        call(agent, server, `${api}/${i % 2 ? 'users/me' : 'tenant'}`, {
          token: acme.access_token,
          headers: { 'cache-control': 'no-cache' }
        })
      )
    ).finally(() => rename('users_elsewhere', 'users'))
    for (const [i, { status, text, headers }] of both.entries()) {
      if (i % 2 === 0) {
        t.equal(status, 200, 'a request beside it')
        continue
      }
      t.match(JSON.parse(text), { status: 500, code: 'internal_error', request_id: headers['x-request-id'] })
      t.strictSame(Object.keys(JSON.parse(text)).sort(), ['code', 'request_id', 'status', 'title', 'type'])
    }
    t.equal((await me(acme.access_token)).status, 200, 'and afterwards it works')

    // PostgreSQL's message contains the refused row
    const constraint = (text: string) =>
      withClient(database.postgres, (client) => client.query(`alter table users ${text}`))
    await constraint(`add constraint nobody check (name <> 'Nobody') not valid`)
    const body = {
      tenant: { name: 'N', slug: 'nobody' },
      name: 'Nobody',
      email: 'nobody@nobody.example',
      password: secretPassword
    }
    const { status, text } = await call(agent, server, `${api}/auth/register`, { body })
    await constraint('drop constraint nobody')
    t.equal(status, 500)
    t.notMatch(text, /nobody@|check|constraint|argon/)
  })

  t.test('a flood of passwords', async (t) => {
    const room = availableParallelism() + 64
    const attempt = (i: number) => signIn({ email: `nobody${i}@acme.example`, password: secretPassword })
    await Promise.all(Array.from({ length: 4 }, (_, i) => attempt(i)))

    t.test('leaves everybody else alone, and says when to come back', async (t) => {
      const resident = residentMiB(server)
      let flooding = true
      const others: Promise<number[]> = (async () => {
        const times: number[] = []
        // the last one needs the thread pool, which hashing uses too
        const reads = [...paths, `${api}/docs/static/swagger-ui.css`]
        while (flooding) times.push(...(await latencies(agent, server, reads, 1, acme.access_token)))
        return times
      })()
      const replies = await Promise.all(Array.from({ length: 200 }, (_, i) => attempt(i)))
      flooding = false
      const times = await others
      const refused = replies.filter(({ status }) => status === 503)
      const hashed = replies.filter(({ status }) => status === 401)
      t.equal(refused.length + hashed.length, 200, 'nothing else comes back')
      t.ok(hashed.length >= room, `${hashed.length} of 200 were hashed`)
      t.ok(refused.length > 0, `${refused.length} of 200 were refused`)
      for (const { headers, text } of refused) {
        t.match(JSON.parse(text), { code: 'overloaded', status: 503 })
        t.match(headers['retry-after'], /^[1-9]\d*$/)
      }
      const slowest = Math.max(...hashed.map(({ ms }) => ms))
      const wait = percentile(
        refused.map(({ ms }) => ms),
        0.5
      )
      t.ok(wait < slowest / 2, `refused after ${Math.round(wait)} ms, hashed after ${Math.round(slowest)} ms`)
      t.ok(times.length > 8, `${times.length} reads meanwhile`)
      t.ok(percentile(times, 0.5) < 250, `reads: half in ${Math.round(percentile(times, 0.5))} ms`)
      t.ok(percentile(times, 0.95) < 1000, `reads: most in ${Math.round(percentile(times, 0.95))} ms`)
      const growth = residentMiB(server) - resident
      t.ok(growth < 160, `grew by ${Math.round(growth)} MiB`)
    })

    t.test('who goes away gives up no place to somebody else', async (t) => {
      const body = JSON.stringify({ email: 'gone@acme.example', password: secretPassword })
      const sockets = await Promise.all(
        Array.from({ length: room }, async () => {
          const socket = connect({ port: server.port, host: '127.0.0.1', noDelay: true })
          socket.on('error', () => {})
          await once(socket, 'connect')
          return socket
        })
      )
      for (const socket of sockets) socket.write(login(`Content-Length: ${body.length}\r\n`) + body)
      // requests that come later and ask the database have their answers: by then these have asked it too, and wait
      await latencies(agent, server, paths, 3, acme.access_token)
      for (const socket of sockets) socket.destroy()
      const replies = await Promise.all(Array.from({ length: room }, (_, i) => attempt(i)))
      const refused = replies.filter(({ status }) => status === 503).length
      t.ok(refused > room / 4, `${refused} of ${room} found no place`)
      t.ok(replies.every(({ status }) => status === 401 || status === 503))
    })

    t.test('is over when it is over', async (t) => {
      await eventually(
        async () => (await signIn({ email: acme.email, password: secretPassword })).status === 200,
        60_000
      )
      t.equal((await signIn({ email: acme.email, password: secretPassword })).status, 200)
    })
  })

  t.test('who asks a thousand times and reads no answer costs no more than others', async (t) => {
    for (const path of [`${api}/openapi.json`, largest]) {
      const open = { descriptors: descriptors(server), resident: residentMiB(server) }
      const sockets = [1, 2].map(() => {
        const socket = connect({ port: server.port, host: '127.0.0.1' })
        socket.on('error', () => {})
        socket.pause()
        socket.write(`GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`.repeat(1000))
        return socket
      })
      let most = { descriptors: 0, resident: 0 }
      for (let i = 0; i < 20; i++) {
        await sleep(100)
        most = {
          descriptors: Math.max(most.descriptors, descriptors(server) - open.descriptors),
          resident: Math.max(most.resident, residentMiB(server) - open.resident)
        }
      }
      for (const socket of sockets) socket.destroy()
      t.ok(most.resident < 150, `${path}: ${Math.round(most.resident)} MiB for two connections`)
      t.ok(most.descriptors < 100, `${path}: ${most.descriptors} descriptors for two connections`)
      await eventually(() => descriptors(server) < open.descriptors + 10, 10_000)
      const after = await me(acme.access_token)
      t.equal(after.status, 200, `${path}: afterwards ${after.status} ${after.text.slice(0, 300)}`)
    }
  })

  t.test('slow connections', async (t) => {
    t.test('slow nobody else down', async (t) => {
      const [calm, busy] = [baseline, attacked].map((times) => percentile(times, 0.95)) as [number, number]
      t.ok(busy < Math.max(10 * calm, 500), `${calm.toFixed(1)} ms without them, ${busy.toFixed(1)} ms beside them`)
    })
    const limits = { headers: 15_000, body: 30_000 }
    for (const kind of ['headers', 'body'] as const) {
      t.test(`the ${kind} of a request must have come in time`, async (t) => {
        const ours = slow.all.filter((each) => each.kind === kind)
        const left = limits[kind] + 20_000 - (Date.now() - slow.startedAt)
        await eventually(() => ours.every(({ closedAfter }) => closedAfter !== undefined), Math.max(left, 100))
        const times = ours.map(({ closedAfter }) => closedAfter as number)
        t.ok(Math.min(...times) >= limits[kind] - 1000, `not before ${Math.min(...times)} ms`)
        t.ok(Math.max(...times) <= limits[kind] + 20_000, `all of them after ${Math.max(...times)} ms`)
        const told = ours.filter(({ received }) => /^HTTP\/1\.1 408 /.test(received)).length
        t.equal(told, ours.length, 'each was told why')
      })
    }
    t.test('nothing of them stays', async (t) => {
      slow.close()
      await eventually(() => descriptors(held) <= before.descriptors + 5, 10_000)
      t.ok(
        descriptors(held) <= before.descriptors + 5,
        `${descriptors(held)} descriptors, ${before.descriptors} before`
      )
      const growth = residentMiB(held) - before.resident
      t.ok(growth < 150, `grew by ${Math.round(growth)} MiB`)
      t.equal((await me(acme.access_token, held)).status, 200)
      t.equal(held.child.exitCode, null)
    })
  })

  t.test('no secret has left the process', (t) => proveNoSecretLeft(t, target, [held]))

  t.test('the process is the one that was started, and failed only where it was made to', (t) =>
    // a table was missing for twenty reads, and one row was refused
    proveItStillRuns(t, target, 21)
  )
})

t.test('who does not read a reply does not hold a connection', async (t) => {
  const app = await startApp(t)
  // the product's own time-out is too long for a test; Node enforces both in the same way
  t.equal(app.server.timeout, 60_000)
  app.server.setTimeout(500)
  await app.listen({ host: '127.0.0.1', port: 0 })
  const { port } = app.server.address() as AddressInfo
  const count = () => new Promise<number>((done) => app.server.getConnections((_, connections) => done(connections)))
  const sockets = await Promise.all(
    Array.from({ length: 20 }, async () => {
      const socket = connect({ port, host: '127.0.0.1' })
      socket.on('error', () => {})
      socket.pause()
      await once(socket, 'connect')
      socket.write(`GET ${largest} HTTP/1.1\r\nHost: localhost\r\n\r\n`.repeat(8))
      return socket
    })
  )
  t.teardown(() => sockets.forEach((socket) => void socket.destroy()))
  await eventually(async () => (await count()) === 20)
  // after two time-outs, because Node gives a reply that has begun one more
  await eventually(async () => (await count()) === 0, 10_000)
  t.equal(await count(), 0)
  t.equal((await fetch(`http://127.0.0.1:${port}${api}/health/live`)).status, 200)
})

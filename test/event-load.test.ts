import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { v7 as uuidv7 } from 'uuid'
import { createTenant, eventually, startApp, startServer, testEnvironment } from './harness.ts'

// bounded in time: how soon ten thousand readers get an event
// rehearsal: ten thousand open streams of events

/*
 * How much memory ten thousand open streams take in one process, and how soon their readers get an event. The figures are those of
 * docs/events.md. STREAMS=1000 tries fewer, where the system allows fewer open files.
 */

const total = Number(process.env.STREAMS ?? 10_000)
const agencies = 10
const perPerson = 10
const opening = 100

const rssOf = (pid: number | undefined) =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024
const cpuOf = (pid: number | undefined) => {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10
}

t.test(`${total} streams in one process`, async (t) => {
  const app = await startApp(t)
  const tenants = await Promise.all(Array.from({ length: agencies }, (_, n) => createTenant(app, `agency${n}`)))
  const server = await startServer(t, testEnvironment(app.database, { EVENT_STREAMS: String(total) }))
  const before = rssOf(server.child.pid)

  let received = 0
  const sockets: Socket[] = []
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
  })
  /** Opens a stream, and counts the events of it. */
  async function open(host: string, token: string): Promise<void> {
    const socket = connect(server.port, '127.0.0.1')
    socket.on('error', () => {})
    sockets.push(socket)
    socket.write(`GET /api/v1/events HTTP/1.1\r\nHost: ${host}\r\nAuthorization: Bearer ${token}\r\n\r\n`)
    socket.setEncoding('latin1')
    const [head] = (await once(socket, 'data')) as [string]
    if (!head.startsWith('HTTP/1.1 200 ')) throw new Error(head)
    socket.on('data', (text: string) => {
      received += text.split('event: tenant.updated').length - 1
    })
  }

  const startedAt = performance.now()
  for (const { id, host } of tenants) {
    const people = Array.from({ length: total / agencies / perPerson }, () => {
      const subject = { user_id: uuidv7(), email: 'reader@example.com', tenant_id: id, role: 'viewer' as const }
      return app.tokens.issue({ ...subject, sid: uuidv7(), key_thumbprint: null }, 1).access_token
    })
    const all = people.flatMap((token) => Array.from({ length: perPerson }, () => token))
    for (let n = 0; n < all.length; n += opening) {
      await Promise.all(all.slice(n, n + opening).map((token) => open(host, token)))
    }
  }
  const openMs = performance.now() - startedAt
  await sleep(20_000)
  const idle = cpuOf(server.child.pid)
  await sleep(10_000)
  const idleShare = (cpuOf(server.child.pid) - idle) / 10_000
  const after = rssOf(server.child.pid)
  t.ok(sockets.every((socket) => !socket.destroyed))

  const rename = (name: string) =>
    Promise.all(
      tenants.map(({ host, owner }) =>
        fetch(`${server.url}/api/v1/tenant`, {
          method: 'PATCH',
          headers: { 'content-type': 'application/json', authorization: `Bearer ${owner.tokens.access_token}` },
          body: JSON.stringify({ name: `${name} of ${host}` })
        })
      )
    )
  const delays: number[] = []
  for (let n = 1; n <= 5; n++) {
    const changedAt = performance.now()
    await rename(`Name ${n}`)
    await eventually(() => received >= n * total)
    delays.push(performance.now() - changedAt)
  }
  t.equal(received, 5 * total, 'each reader got each event once')
  const each = ((after - before) * 1024) / total
  t.comment(
    `opened in ${(openMs / 1000).toFixed(1)} s; ${before.toFixed(0)} MiB before, ${after.toFixed(0)} MiB with them`
  )
  t.comment(`${each.toFixed(1)} KiB each; ${(idleShare * 100).toFixed(1)} % of a core while nothing happens`)
  t.comment(
    `all readers had an event of their agency ${delays.map((ms) => Math.round(ms)).join(', ')} ms after the change was sent`
  )
  t.ok(each < 40, `${each.toFixed(1)} KiB for each stream`)
  t.ok(idleShare < 0.2, `${(idleShare * 100).toFixed(1)} % of a core`)
})

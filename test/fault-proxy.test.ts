import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { type FaultProxy, startFaultProxy, type Toxic } from './fault-proxy.ts'
import { eventually } from './harness.ts'

// bounded in time: how long a fault lasts

/*
 * The fault proxy, on which other tests rely: what both ends see of each fault.
 */

type End = { socket: Socket; text: string; ended: boolean; closed: boolean; error: string | undefined }

function listenTo(socket: Socket): End {
  const end: End = { socket, text: '', ended: false, closed: false, error: undefined }
  socket.setEncoding('latin1').on('data', (text: string) => {
    end.text += text
  })
  socket.on('error', (err: NodeJS.ErrnoException) => {
    end.error = err.code
  })
  socket.on('end', () => {
    end.ended = true
  })
  socket.on('close', () => {
    end.closed = true
  })
  return end
}

/** A silent server behind the proxy. `dial` opens a connection and gives both of its ends. */
async function setUp(t: Test) {
  const accepted: End[] = []
  const server = createServer({ allowHalfOpen: true }, (socket) => void accepted.push(listenTo(socket)))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const proxy = await startFaultProxy(t, port)
  t.teardown(() => {
    server.close()
    for (const { socket } of accepted) socket.destroy()
  })
  async function dial(): Promise<{ client: End; server: End }> {
    const before = accepted.length
    const client = listenTo(connect({ port: proxy.port, host: '127.0.0.1', allowHalfOpen: true }))
    t.teardown(() => client.socket.destroy())
    await eventually(() => accepted.length > before)
    return { client, server: accepted.at(-1) as End }
  }
  return { proxy, dial, port, accepted }
}

async function withToxic(t: Test, toxic: Toxic) {
  const { proxy, dial } = await setUp(t)
  await proxy.add(toxic)
  return { proxy, ...(await dial()) }
}

async function works(t: Test, proxy: FaultProxy, dial: () => Promise<{ client: End; server: End }>) {
  await proxy.clear()
  const { client, server } = await dial()
  client.socket.write('ping')
  server.socket.write('pong')
  await eventually(() => server.text === 'ping' && client.text === 'pong')
  t.pass('what comes later works')
}

t.test('without a fault bytes and ends arrive, in both directions', async (t) => {
  const { dial, proxy } = await setUp(t)
  const { client, server } = await dial()
  const much = 'x'.repeat(1_000_000)
  client.socket.write(much)
  server.socket.end('reply')
  await eventually(() => server.text.length === much.length && client.ended)
  t.equal(client.text, 'reply')
  t.notOk(server.ended, 'one direction is over, the other is not')
  client.socket.end()
  await eventually(() => server.closed && client.closed)
  t.equal(proxy.hits(), 0)
})

t.test('latency', async (t) => {
  const { client, server } = await withToxic(t, { type: 'latency', latency: 300, jitter: 50, direction: 'upstream' })
  const startedAt = Date.now()
  client.socket.write('late')
  server.socket.write('at once')
  await eventually(() => client.text === 'at once')
  t.equal(server.text, '', 'the other direction is not slow')
  await eventually(() => server.text === 'late')
  t.ok(Date.now() - startedAt >= 299)
})

t.test('bandwidth', async (t) => {
  const { client, server } = await withToxic(t, { type: 'bandwidth', rate: 100_000 })
  const startedAt = Date.now()
  client.socket.write('x'.repeat(50_000))
  await eventually(() => server.text.length === 50_000)
  t.ok(Date.now() - startedAt >= 450, 'half of what goes in a second takes half a second')
})

t.test('blackhole', async (t) => {
  const { proxy, dial } = await setUp(t)
  const old = await dial()
  await proxy.add({ type: 'blackhole' })
  const fresh = connect(proxy.port, '127.0.0.1').on('error', () => {})
  await once(fresh, 'connect')
  fresh.write('anybody?')
  old.client.socket.write('lost')
  old.server.socket.end('lost too')
  await sleep(200)
  t.strictSame([old.client.text, old.server.text], ['', ''])
  t.notOk(old.client.ended, 'nobody is told that the other is gone')
  await proxy.clear()
  await eventually(() => old.client.closed, 2000)
  await works(t, proxy, dial)
})

t.test('refuse', async (t) => {
  const { proxy, dial } = await setUp(t)
  const old = await dial()
  await proxy.add({ type: 'refuse' })
  await eventually(() => old.client.closed && old.server.closed)
  const refused = connect(proxy.port, '127.0.0.1')
  const [err] = (await once(refused, 'error')) as [NodeJS.ErrnoException]
  t.equal(err.code, 'ECONNREFUSED')
  await works(t, proxy, dial)
})

for (const bytes of [0, 1, 5]) {
  t.test(`reset_after ${bytes} bytes`, async (t) => {
    const { proxy, client, server } = await withToxic(t, { type: 'reset_after', bytes, direction: 'downstream' })
    client.socket.write('a question')
    await eventually(() => server.text === 'a question')
    server.socket.write('an answer')
    await eventually(() => client.closed || client.ended)
    t.equal(client.text, 'an answer'.slice(0, bytes))
    t.equal(proxy.hits(), 1)
  })
}

t.test('half_close', async (t) => {
  const { client, server } = await withToxic(t, { type: 'half_close', bytes: 2, direction: 'upstream' })
  client.socket.write('hello')
  await eventually(() => server.ended)
  t.equal(server.text, 'he')
  server.socket.write('still here')
  await eventually(() => client.text === 'still here')
  t.notOk(client.ended)
})

t.test('cut_on', async (t) => {
  const { proxy, dial } = await setUp(t)
  await proxy.add({ type: 'cut_on', pattern: 'COMMIT\0', direction: 'downstream', times: 1 })
  const { client, server } = await dial()
  client.socket.write('COMMIT\0')
  await eventually(() => server.text === 'COMMIT\0')
  server.socket.write('before COM')
  await eventually(() => client.text === 'before COM')
  server.socket.write('MIT')
  await sleep(50)
  server.socket.write('\0 after')
  await eventually(() => client.closed || client.ended)
  t.match(client.text, /^before COM(MIT)?$/, 'the last byte of the pattern never arrives')
  t.equal(proxy.hits(), 1)
  await eventually(() => server.closed || server.ended)
  const second = await dial()
  second.server.socket.write('COMMIT\0')
  await eventually(() => second.client.text === 'COMMIT\0')
  t.pass('so often and no more')
})

t.test('another server can be put behind it', async (t) => {
  const first = await setUp(t)
  const second = await setUp(t)
  const old = await first.dial()
  first.proxy.lead(second.port)
  await eventually(() => old.client.closed)
  const client = listenTo(connect(first.proxy.port, '127.0.0.1'))
  client.socket.write('to the second')
  await eventually(() => second.accepted.some(({ text }) => text === 'to the second'))
  t.equal(first.accepted.length, 1, 'and none to the first any more')
  t.equal(first.proxy.through('postgres://a:b@db.example:5432/x'), `postgres://a:b@127.0.0.1:${first.proxy.port}/x`)
  client.socket.destroy()
})

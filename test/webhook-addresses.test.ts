import net, { createServer, type LookupFunction, type Server, type TcpNetConnectOpts } from 'node:net'
import t, { type Test } from 'tap'
import { allRows, createTenant, post, startApp } from './harness.ts'
import { startNameServer } from './name-server.ts'
import { otherStrongSecret, strongSecret } from './tokens.ts'
import { createWebhook, deliver } from './webhook-receiver.ts'

/*
 * What a webhook can not reach (SSRF): everything but the public internet. A listener of this machine counts the connections.
 */

/** Listens on a port of this machine, by both families. */
async function startListener(t: Test) {
  const seen = { connections: 0 }
  const listen = (host: string, port: number) =>
    new Promise<Server>((done) => {
      const server = createServer((socket) => {
        seen.connections++
        socket.destroy()
      })
      server.listen(port, host, () => done(server))
    })
  const first = await listen('127.0.0.1', 0)
  const { port } = first.address() as { port: number }
  const servers = [first, await listen('::1', port)]
  t.teardown(() => servers.map((server) => server.close()))
  return { port, seen }
}

/** Addresses as they are written in the URL of a webhook. */
const written = [
  ...[
    '127.0.0.1',
    '127.1',
    '127.0.1',
    '2130706433',
    '0x7f000001',
    '0x7f.1',
    '0x7f.0.0.1',
    '017700000001',
    '0177.0.0.1'
  ],
  ...['0177.0.0.01', '127.255.255.254', '127.0.0.1.', '%31%32%37.0.0.1', '127。0。0。1', '①②⑦.0.0.1', '127.0.0.１'],
  ...['0', '0.0.0.0', '0x0', '00000000000', '10.0.0.1', '10.255.255.255', '167772161', '012.0.0.1', '100.64.0.1'],
  ...[
    '100.127.255.254',
    '169.254.169.254',
    '2852039166',
    '0xa9fea9fe',
    '0251.0376.0251.0376',
    '169.254.170.2',
    '172.16.0.1'
  ],
  ...[
    '172.31.255.255',
    '192.0.0.192',
    '192.0.2.1',
    '192.88.99.1',
    '192.168.0.1',
    '192.168.255.255',
    '3232235521',
    '198.18.0.1'
  ],
  ...['198.51.100.1', '203.0.113.1', '224.0.0.1', '239.255.255.250', '240.0.0.1', '255.255.255.255'],
  ...[
    '[::1]',
    '[::]',
    '[0:0:0:0:0:0:0:1]',
    '[::ffff:127.0.0.1]',
    '[::ffff:7f00:1]',
    '[::ffff:10.0.0.1]',
    '[::127.0.0.1]'
  ],
  ...['[::ffff:0:127.0.0.1]', '[64:ff9b::127.0.0.1]', '[64:ff9b::a9fe:a9fe]', '[64:ff9b:1::7f00:1]', '[2002:7f00:1::]'],
  ...['[2002:7f00:0001::1]', '[2001:0:7f00:1::]', '[2001:db8::1]', '[fe80::1]', '[febf::1]', '[fec0::1]', '[fc00::1]'],
  ...['[fd00:ec2::254]', '[ff02::1]', '[ff0e::1]', '[100::1]', '[3fff::1]', '[5f00::1]'],
  ...['localhost', 'LOCALHOST', 'localhost.', 'a.localhost', 'ｌocalhost']
]

/** Names, and the addresses that DNS tells of them. */
const named: Record<string, { a?: string[]; aaaa?: string[]; cname?: string }> = {
  'loopback.example': { a: ['127.0.0.1'] },
  'loopback-six.example': { aaaa: ['::1'] },
  'both.example': { a: ['127.0.0.1'], aaaa: ['::1'] },
  'private.example': { a: ['10.0.0.1', '192.168.0.1'] },
  'metadata.example': { a: ['169.254.169.254'], aaaa: ['fd00:ec2::254'] },
  'shared.example': { a: ['100.64.0.1'] },
  'mapped.example': { aaaa: ['::ffff:7f00:1'] },
  'nat64.example': { aaaa: ['64:ff9b::7f00:1'] },
  'six-to-four.example': { aaaa: ['2002:7f00:1::'] },
  'unspecified.example': { a: ['0.0.0.0'], aaaa: ['::'] },
  'multicast.example': { a: ['224.0.0.1'] },
  'alias.example': { cname: 'loopback.example' },
  'nowhere.example': {}
}

t.test('a webhook reaches nothing but the public internet', async (t) => {
  const { port, seen } = await startListener(t)
  const dns = await startNameServer(t)
  for (const [name, host] of Object.entries(named)) dns.hosts.set(name, host)
  const app = await startApp(t, {
    ...{ NODE_ENV: 'production', JWT_SECRET: strongSecret, PASSWORD_PEPPER: otherStrongSecret },
    ...{ DNS_SERVERS: dns.address }
  })
  const acme = await createTenant(app, 'acme')
  const webhook = await createWebhook(acme, 'https://hooks.acme.example', { event_types: ['tenant.purged'] })

  /** Sends a test to an address that was stored whatever it is, and resolves to why it was not sent. */
  async function reasonFor(url: string): Promise<string | null> {
    await allRows(app.database, 'delete from webhook_deliveries')
    const set = "url = $1, failures = 0, failing_since = null, busy_until = '-infinity'"
    await allRows(app.database, `update webhook_endpoints set ${set} where lease is null`, [url])
    const { id } = (await acme.send({ method: 'POST', url: `/api/v1/webhooks/${webhook.id}/test` })).json()
    await app.webhooks.run()
    const { log } = (await acme.send(`/api/v1/webhooks/${webhook.id}/deliveries/${id}`)).json()
    return log[0]?.error ?? null
  }

  await t.test('by no address that is written in its URL', async (t) => {
    t.ok(written.length >= 60)
    for (const host of written) {
      const url = `https://${host}:${port}/`
      t.equal(await reasonFor(url), 'refused', host)
      if (!/localhost/i.test(host.normalize('NFKC'))) {
        t.match((await acme.send(post('/webhooks', { url }))).json(), { code: 'validation_failed' }, host)
      }
    }
    t.equal(seen.connections, 0)
  })

  await t.test('by no name', async (t) => {
    for (const name of Object.keys(named)) {
      const reason = await reasonFor(`https://${name}:${port}/`)
      t.equal(reason, name === 'nowhere.example' ? 'unknown_host' : 'refused', name)
    }
    t.equal(seen.connections, 0)
  })

  await t.test('by no other scheme, and with no password', async (t) => {
    for (const url of [
      `http://127.0.0.1:${port}/`,
      `http://localhost:${port}/`,
      'ftp://loopback.example/',
      'file:///etc/passwd'
    ]) {
      t.equal(await reasonFor(url), 'refused', url)
      t.match((await acme.send(post('/webhooks', { url }))).json(), { code: 'validation_failed' }, url)
    }
    t.equal(await reasonFor(`https://user:secret@loopback.example:${port}/`), 'refused')
    t.equal(seen.connections, 0)
  })

  await t.test('and a name that leads elsewhere a moment later is looked up once', async (t) => {
    const targets = await recordTargets(t, 'rebind.example')
    const lookups = () => dns.asked.filter((name) => name === 'rebind.example').length
    dns.hosts.set('rebind.example', {
      // the first look-up is one question for each family
      get a() {
        return lookups() <= 2 ? ['11.22.33.44'] : ['127.0.0.1']
      }
    })
    dns.hosts.set('mixed.rebind.example', { a: ['127.0.0.1', '11.22.33.44', '10.0.0.1'], aaaa: ['::1'] })
    t.equal(await reasonFor(`https://rebind.example:${port}/`), 'connection')
    t.strictSame(targets, ['11.22.33.44'], 'the address that was checked is the one that is connected to')
    t.equal(lookups(), 2, 'one question for each family')
    targets.length = 0
    t.equal(await reasonFor(`https://mixed.rebind.example:${port}/`), 'connection')
    t.strictSame(targets, ['11.22.33.44'], 'of several addresses only those that are public')
    t.equal(await reasonFor(`https://rebind.example:${port}/`), 'refused', 'by now it leads elsewhere')
    t.equal(seen.connections, 0)
  })

  await t.test('whatever proxy the environment names', async (t) => {
    const names = ['HTTPS_PROXY', 'https_proxy', 'HTTP_PROXY', 'ALL_PROXY', 'NODE_USE_ENV_PROXY']
    for (const name of names) process.env[name] = name === 'NODE_USE_ENV_PROXY' ? '1' : `http://127.0.0.1:${port}`
    t.teardown(() => names.forEach((name) => void delete process.env[name]))
    await recordTargets(t, 'public.example')
    dns.hosts.set('public.example', { a: ['11.22.33.44'] })
    t.equal(await reasonFor(`https://public.example:${port}/`), 'connection')
    t.equal(seen.connections, 0)
  })

  await deliver(app)
  t.equal(seen.connections, 0)
})

/** Records the addresses to which connections to a host, and to names below it, would go, and makes none of these. */
async function recordTargets(t: Test, host: string): Promise<string[]> {
  const targets: string[] = []
  const connect = net.Socket.prototype.connect as (this: net.Socket, ...args: unknown[]) => net.Socket
  net.Socket.prototype.connect = function (this: net.Socket, ...args: unknown[]) {
    const first = args[0]
    // node:net passes its normalized arguments on as one array
    const options = (Array.isArray(first) ? first[0] : first) as TcpNetConnectOpts
    if (!options?.host?.endsWith(host)) return connect.apply(this, args)
    const lookup = options.lookup as LookupFunction
    lookup(options.host, { all: true }, (err, found) => {
      if (!err) targets.push(...[found].flat().map((each) => (typeof each === 'string' ? each : each.address)))
      this.destroy(err ?? Object.assign(new Error('not reached'), { code: 'ENETUNREACH' }))
    })
    return this
  } as typeof net.Socket.prototype.connect
  t.teardown(() => {
    net.Socket.prototype.connect = connect as typeof net.Socket.prototype.connect
  })
  return targets
}

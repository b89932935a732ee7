import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { readAddress } from '../src/http/addresses.ts'
import { allRows, createTenant, password, post, root, send, startApp } from './harness.ts'

/*
 * Where a request is from: what a proxy passes on may be spelled in many ways, and may be no address at all.
 */

const proxied = { TRUST_PROXY: '10.0.0.0/8, fd00::/8' }

t.test('an address is read however it is written', async (t) => {
  const readable = {
    '192.0.2.7': ['192.0.2.7', '192.0.2.7:5678', '::ffff:192.0.2.7', '::FFFF:C000:207', '[::ffff:192.0.2.7]:443'],
    '2001:db8::1': ['2001:DB8::1', '[2001:db8::1]', '[2001:db8::1]:443', '2001:0db8:0:0:0:0:0:1', '2001:db8::1%eth0'],
    'fe80::1': ['fe80::1%25eth0', '[fe80::1%eth0]:80']
  }
  for (const [address, texts] of Object.entries(readable)) {
    for (const text of texts) t.equal(readAddress(text), address, text)
  }
  for (const text of [
    ...['', ' ', 'unknown', '_hidden', '-', 'localhost', '1.2.3', '1.2.3.4.5', '01.2.3.4', '1.2.3.4:', '1.2.3.4:x'],
    ...['1.2.3.4:123456', '[::1', '::1]', '[::1]x', '[]:80', ':::', '1.2.3.4\r\nx', `1.2.3.4:${'0'.repeat(100_000)}`],
    ...['['.repeat(100_000), '1.'.repeat(100_000), undefined]
  ]) {
    t.equal(readAddress(text), undefined, `${text?.slice(0, 20)}`)
  }
})

t.test('behind a proxy', async (t) => {
  const app = await startApp(t, { RATE_LIMIT_AUTH: '3/1m', ...proxied })
  const acme = await createTenant(app, 'acme')
  const signIn = (forwarded: string, email = 'nobody@example.com', peer = '10.0.0.1') =>
    send(app, acme.host, {
      ...post('/auth/login', { email, password }, { 'x-forwarded-for': forwarded, 'user-agent': forwarded }),
      remoteAddress: peer
    })
  let people = 0
  /** Sends sign-in attempts, each for another account. Resolves to the number that the limit lets through. */
  async function attempts(spellings: string[], peer?: string): Promise<number> {
    const replies = []
    for (const spelling of spellings) replies.push(await signIn(spelling, `p${people++}@example.com`, peer))
    return replies.filter(({ statusCode }) => statusCode === 401).length
  }
  const numbered = (text: string) => Array.from({ length: 6 }, (_, i) => text.replace('#', String(1000 + i)))

  t.test('a port makes nobody another', async (t) => {
    t.equal(await attempts(numbered('198.51.100.1:#')), 3)
    t.equal(await attempts(['198.51.100.1', '::ffff:198.51.100.1', '[::ffff:198.51.100.1]:80']), 0)
    t.equal(await attempts(numbered('[2001:db8:1:1::1]:#')), 3)
    t.equal(await attempts(['2001:db8:1:1:2::2', '2001:db8:1:1::1%eth0']), 0)
  })
  t.test('what is no address is the proxy that wrote it', async (t) => {
    t.equal(await attempts(numbered('visitor-#'), '10.0.0.3'), 3)
    t.equal(await attempts(['', '-', '_#', '1.2.3.4:x', 'x'.repeat(500)], '10.0.0.3'), 0)
    t.equal(await attempts(['198.51.100.2'], '10.0.0.3'), 1, 'whom it names is somebody else')
  })
  t.test('a proxy is known by its address, whatever its port', async (t) => {
    t.equal(await attempts(numbered('198.51.100.3, 10.0.0.2:#')), 3)
    t.equal(await attempts(numbered('198.51.100.#, 198.51.100.4:80, [fd00::1]:#'), '::ffff:10.0.0.1'), 3)
  })
  t.test('what is kept of a request is the address alone', async (t) => {
    const spellings = ['203.0.113.5:4711', '[2001:db8:7::7]:443', 'garbage']
    for (const forwarded of spellings) {
      t.equal((await signIn(forwarded, acme.owner.email, '10.0.0.9')).statusCode, 200, forwarded)
    }
    const kept = [
      [spellings[0], '203.0.113.5'],
      [spellings[1], '2001:db8:7::7'],
      [spellings[2], '10.0.0.9']
    ]
    for (const table of ['sessions', 'audit_events']) {
      const rows = await allRows(
        app.database,
        `select user_agent, host(ip) as ip from ${table} where user_agent = any ($1) order by ${table === 'sessions' ? 'id' : 'created_at'}`,
        [spellings]
      )
      t.strictSame(
        rows.map(({ user_agent, ip }) => [user_agent, ip]),
        kept,
        table
      )
    }
  })
})

t.test('nothing but the one reader asks where a request is from', async (t) => {
  const files = ['src', 'plugins', 'routes', 'db'].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((file) => file.endsWith('.ts'))
      .map((file) => join(folder, file))
  )
  const asking = files.filter((file) =>
    /\b(?:request|req|this|raw)\.ips?\b|\bremoteAddress\b|x-forwarded-for|[{,]\s*ips?\b[^:}]*}\s*(?:=|:\s*FastifyRequest)/.test(
      readFileSync(join(root, file), 'utf8')
    )
  )
  t.equal(asking.length, 1, String(asking))
  t.match(readFileSync(join(root, asking[0] as string), 'utf8'), /name: 'addresses'/)
})

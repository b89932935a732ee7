import { pbkdf2 } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import t from 'tap'
import { createHostLookup, createSystemLookup, hostLookupTimeoutMs } from '../src/http/host-lookups.ts'
import { createOutboundFetch } from '../src/http/outbound-requests.ts'
import { temporaryFolder } from './harness.ts'
import { stopwatch } from './machine.ts'
import { startNameServer } from './name-server.ts'

// bounded in time: how long a look-up waits for name servers that never answer

t.test('the host of a provider', async (t) => {
  const dns = await startNameServer(t)
  const hostsFile = join(temporaryFolder(t), 'hosts')
  await writeFile(
    hostsFile,
    '# names of this machine\n192.0.2.9 Written.example other # a name\n2001:db8::9\twritten.example\n'
  )
  const find = createHostLookup({ servers: [dns.address], hostsFile })
  dns.hosts.set('both.example', { a: ['192.0.2.1', '192.0.2.2'], aaaa: ['2001:db8::1'] })
  dns.hosts.set('six.example', { aaaa: ['2001:db8::6'] })
  dns.hosts.set('alias.example', { cname: 'second.example' })
  dns.hosts.set('second.example', { cname: 'both.example' })
  dns.hosts.set('half.example', { a: ['192.0.2.4'], aaaa: 'silence' })
  dns.hosts.set('empty.example', {})
  const both = [
    { address: '192.0.2.1', family: 4 },
    { address: '192.0.2.2', family: 4 },
    { address: '2001:db8::1', family: 6 }
  ]

  await t.test('is looked up at the servers of the settings, along its aliases', async (t) => {
    t.strictSame(await find('both.example'), both)
    t.strictSame(await find('Both.Example.'), both)
    t.strictSame(await find('alias.example'), both)
    t.strictSame(await find('six.example'), [{ address: '2001:db8::6', family: 6 }])
  })

  await t.test('is looked up in the hosts file first, and names of this machine nowhere', async (t) => {
    const before = dns.asked.length
    t.strictSame(await find('written.example'), [
      { address: '192.0.2.9', family: 4 },
      { address: '2001:db8::9', family: 6 }
    ])
    for (const name of ['localhost', 'acme.localhost', 'a.b.localhost']) {
      t.match(await find(name), [{ address: '127.0.0.1' }, { address: '::1' }], name)
    }
    t.equal(dns.asked.length, before)
    const without = createHostLookup({ servers: [dns.address], hostsFile: '/no/such/file' })
    t.strictSame(await without('both.example'), both)
  })

  await t.test('has no address', async (t) => {
    dns.answers.set('broken.example', 'server_failure')
    await t.rejects(find('nobody.example'), { code: 'ENOTFOUND' })
    await t.rejects(find('empty.example'), { code: 'ENODATA' })
    await t.rejects(find('broken.example'), { code: 'ESERVFAIL' })
  })

  await t.test('is found although the other family gets no answer', async (t) => {
    const elapsed = stopwatch()
    t.strictSame(await find('half.example'), [{ address: '192.0.2.4', family: 4 }])
    t.ok(elapsed() < 1500, `${elapsed()} ms`)
  })

  await t.test('of silent servers ends in time, and holds neither files nor hashing up', async (t) => {
    dns.answers.set('silent.example', 'silence')
    const elapsed = stopwatch()
    const looked = Promise.allSettled(Array.from({ length: 30 }, () => find('silent.example')))
    await sleep(50)
    const others = stopwatch()
    await Promise.all([readFile(hostsFile), promisify(pbkdf2)('x', 'y', 1, 8, 'sha256'), find('both.example')])
    t.ok(others() < 1500, `${others()} ms for what needs a thread`)
    for (const result of await looked) {
      t.match(result, { status: 'rejected', reason: { code: /^(ETIMEOUT|ECANCELLED)$/ } })
    }
    t.ok(elapsed() < hostLookupTimeoutMs + 3000, `${elapsed()} ms`)
  })

  await t.test('is connected to only at a public address, which is looked up once', async (t) => {
    const fetch = createOutboundFetch({ development: false, findAddresses: find })
    dns.hosts.set('inside.example', { a: ['127.0.0.1', '10.0.0.1', '169.254.169.254'], aaaa: ['fd00::1'] })
    dns.hosts.set('lured.example', { cname: 'inside.example' })
    for (const host of ['inside.example', 'lured.example', 'written.example', 'x.localhost']) {
      await t.rejects(fetch(`https://${host}/`), { message: 'the host has no public address', timeout: false }, host)
    }
    await t.rejects(fetch('https://nobody.example/'), { message: 'the host was not found', timeout: false })
    const silent = { message: 'the name servers did not answer', timeout: true }
    await t.rejects(fetch('https://silent.example/'), silent)
    const before = dns.asked.length
    await t.rejects(fetch('https://inside.example/'))
    t.equal(dns.asked.length - before, 2, 'one question for each family of addresses')
  })
})

t.test('the system is asked by two look-ups at most, and once for a name', async (t) => {
  let running = 0
  let most = 0
  const asked: string[] = []
  const resolve = async (name: string) => {
    asked.push(name)
    most = Math.max(most, ++running)
    await sleep(5)
    running--
    if (name === 'wrong.example') throw Object.assign(new Error('no such host'), { code: 'ENOTFOUND' })
    return [{ address: '10.0.0.1', family: 4 }]
  }
  const find = createSystemLookup(resolve as never)
  const names = Array.from({ length: 20 }, (_, n) => `n${n % 10}.example`)
  for (const addresses of await Promise.all(names.map(find))) t.match(addresses, [{ address: '10.0.0.1' }])
  t.equal(most, 2)
  t.equal(asked.length, 10)
  await t.rejects(find('wrong.example'), { code: 'ENOTFOUND' })
  t.match(await find('n1.example'), [{ address: '10.0.0.1' }], 'a failure holds no place')
  t.match(await createSystemLookup()('localhost'), [{ address: String }], 'by the system itself')
})

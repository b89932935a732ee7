import t, { type Test } from 'tap'
import {
  allRows,
  createTenant,
  eventually,
  mailsTo,
  post,
  type Reply,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
import { verifyAll } from './mailed-links.ts'
import { type NameServer, startNameServer } from './name-server.ts'

/*
 * Domains of an agency: adding, proving by DNS, the daily look-up, losing.
 */

const path = (name: string, rest = '') => `/api/v1/domains/${encodeURIComponent(name)}${rest}`
const add = (tenant: Tenant, name: unknown) => tenant.send(post('/domains', { name }))
const verify = (tenant: Tenant, name: string): Promise<Reply> =>
  tenant.send({ method: 'POST', url: path(name, '/verify') })
const read = async (tenant: Tenant, name: string) => (await tenant.send(path(name))).json()

/** Adds a domain, publishes its record, and verifies it. */
async function prove(tenant: Tenant, dns: NameServer, name: string): Promise<string> {
  const { record } = (await add(tenant, name)).json()
  dns.answers.set(record.name, [record.value])
  const reply = await verify(tenant, name)
  if (reply.statusCode !== 200) throw new Error(reply.body)
  return record.name
}

/** As if a day had passed. */
async function nextDay(app: TestApp): Promise<void> {
  await allRows(app.database, "update tenant_domains set due_at = now() - interval '1 second'")
  await app.domainChecks.run()
}

const actions = async (app: TestApp, tenant: Tenant) =>
  (
    await allRows(
      app.database,
      "select action, detail from audit_events where tenant_id = $1 and action like 'domain.%' order by created_at, id",
      [tenant.id]
    )
  ).map(({ action, detail }) => `${action} ${detail.name}`)

async function start(t: Test) {
  const dns = await startNameServer(t)
  const app = await startApp(t, { DNS_SERVERS: dns.address, LOG_LEVEL: 'info' })
  return { dns, app, acme: await createTenant(app, 'acme'), rival: await createTenant(app, 'rival') }
}

t.test('an agency proves a domain', async (t) => {
  const { dns, app, acme, rival } = await start(t)

  const refusedAndKept = async (t: Test, reason: string) => {
    t.match((await verify(acme, 'acme.example')).json(), { code: 'domain_not_proven', reason })
    t.equal((await read(acme, 'acme.example')).status, 'verified', 'asking ends no proof')
  }

  await t.test('by a record that is its own, and the same at each read', async (t) => {
    const added = await add(acme, 'Acme.Example.')
    t.equal(added.statusCode, 201)
    const { record } = added.json()
    t.match(added.json(), { name: 'acme.example', status: 'pending', verified_at: null, checked_at: null })
    t.match(record, { type: 'TXT', name: '_aggios-challenge.acme.example', value: /^aggios-domain=[0-9a-f]{32}$/ })
    t.strictSame((await read(acme, 'ACME.example')).record, record)
    t.match((await add(acme, 'acme.example')).json(), { status: 409, code: 'conflict' })

    const refused = async (reason: string) => {
      t.match((await verify(acme, 'acme.example')).json(), { status: 409, code: 'domain_not_proven', reason })
      t.match(await read(acme, 'acme.example'), { status: 'pending', verified_at: null })
    }
    await refused('no_name')
    dns.answers.set(record.name, [])
    await refused('no_record')
    dns.answers.set(record.name, ['aggios-domain=something else', `x${record.value}`, `${record.value}x`])
    await refused('other_records')
    dns.answers.set(record.name, 'server_failure')
    await refused('server_failure')
    dns.answers.set(record.name, 'refused')
    await refused('server_failure')
    dns.answers.set(record.name, ['v=spf1 -all', [record.value.slice(0, 9), record.value.slice(9)]])
    const proven = await verify(acme, 'acme.example')
    t.equal(proven.statusCode, 200, 'among others, and in several strings')
    t.match(proven.json(), { status: 'verified', verified_at: String, checked_at: String })
    t.equal((await verify(acme, 'acme.example')).json().verified_at, proven.json().verified_at, 'since the first time')

    dns.answers.delete(record.name)
    await refusedAndKept(t, 'no_name')
  })
  await t.test('and waits no longer than five seconds for name servers that are silent', async (t) => {
    dns.answers.set('_aggios-challenge.acme.example', 'silence')
    await refusedAndKept(t, 'timeout')
  })

  await t.test('that another agency may prove too, each for itself', async (t) => {
    t.equal((await rival.send(path('acme.example'))).statusCode, 404)
    const { record } = (await add(rival, 'acme.example')).json()
    t.equal((await add(rival, 'acme.example')).statusCode, 409)
    const own = await read(acme, 'acme.example')
    t.not(record.value, own.record.value)
    dns.answers.set(record.name, [own.record.value])
    t.match((await verify(rival, 'acme.example')).json(), { reason: 'other_records' }, 'the record of another is none')
    dns.answers.set(record.name, [own.record.value, record.value])
    t.equal((await verify(rival, 'acme.example')).statusCode, 200)
    t.equal((await read(acme, 'acme.example')).status, 'verified')
  })

  await t.test('which the export of the agency has', async (t) => {
    const lines = (await acme.send('/api/v1/tenant/export')).body.trim().split('\n')
    const domains = lines.map((line) => JSON.parse(line)).filter(({ table }) => table === 'domain')
    t.match(domains, [{ row: { name: 'acme.example', verified_at: String } }])
    t.equal(domains.length, 1)
  })

  await t.test('and removes it', async (t) => {
    const remove = () => acme.send({ method: 'DELETE', url: path('acme.example') })
    t.equal((await remove()).statusCode, 204)
    t.equal((await remove()).statusCode, 404)
    t.equal((await read(rival, 'acme.example')).status, 'verified')
    t.match((await add(acme, 'acme.example')).json(), { status: 'pending' }, 'and must prove it anew')
    t.match((await verify(acme, 'acme.example')).json(), { reason: 'other_records' }, 'by another record')
    t.strictSame(await actions(app, acme), [
      'domain.added acme.example',
      'domain.verified acme.example',
      'domain.removed acme.example',
      'domain.added acme.example'
    ])
  })
})

t.test('which names may be added, and by whom', async (t) => {
  const { app, acme } = await start(t)
  for (const name of [
    '',
    'acme',
    'localhost',
    'acme.localhost',
    'com',
    'com.br',
    'co.uk',
    'github.io',
    '192.0.2.1',
    '[2001:db8::1]',
    '2001:db8::1',
    'acme.example/path',
    'https://acme.example',
    'ada@acme.example',
    '*.acme.example',
    '_dmarc.acme.example',
    '-acme.example',
    'acme..example',
    'acme.example..',
    `${'a'.repeat(64)}.example`,
    `${'a.'.repeat(120)}example`,
    'acme.example\n',
    5,
    null
  ]) {
    t.match((await add(acme, name)).json(), { status: 400, code: 'validation_failed' }, JSON.stringify(name))
  }
  t.match(
    (await add(acme, 'bücher.example')).json(),
    { name: 'xn--bcher-kva.example' },
    'other letters in their IDNA form'
  )
  t.match(await read(acme, 'BÜCHER.example'), { name: 'xn--bcher-kva.example' })
  t.equal((await add(acme, 'sub.acme.com.br')).statusCode, 201)
  t.equal((await add(acme, 'acme.github.io')).statusCode, 201)
  const longest = `${'a.'.repeat(96)}exempla`.padEnd(200, 'x')
  t.equal((await add(acme, longest)).statusCode, 201)
  t.equal((await read(acme, longest)).name, longest)

  await allRows(
    app.database,
    `insert into tenant_domains (tenant_id, name) select $1, 'n' || i || '.example' from generate_series(1, 15) i`,
    [acme.id]
  )
  const many = await Promise.all(['one.example', 'two.example', 'three.example'].map((name) => add(acme, name)))
  t.strictSame(
    many.map(({ statusCode }) => statusCode).sort(),
    [201, 409, 409],
    'twenty at most, also at the same moment'
  )
  const first = (await acme.send('/api/v1/domains?limit=15')).json()
  const second = (await acme.send(`/api/v1/domains?limit=15&cursor=${first.next_cursor}`)).json()
  const names = [...first.data, ...second.data].map(({ name }) => name)
  t.equal(names.length, 20)
  t.strictSame(names, names.toSorted(), 'by name')

  await allRows(app.database, "update sessions set authenticated_at = now() - interval '6 minutes'")
  const stale = { status: 403, code: 'reauthentication_required' }
  t.match((await add(acme, 'late.example')).json(), stale)
  t.match((await acme.send({ method: 'DELETE', url: path('n1.example') })).json(), stale)
})

t.test('a proof is looked up every day', async (t) => {
  const { dns, app, acme, rival } = await start(t)
  await verifyAll(app)
  const record = await prove(acme, dns, 'acme.example')
  await prove(rival, dns, 'rival.example')
  const covers = async (address: string) => {
    const [row] = await allRows(
      app.database,
      "select tenant_has_domain($2) as proven from (select set_config('app.tenant_id', $1, false)) as scope",
      [acme.id, address]
    )
    return row.proven
  }
  t.equal(await covers('ada@acme.example'), true)
  t.equal(await covers('ada@sub.acme.example'), false, 'exactly that domain')
  t.equal(await covers('acme.example'), false)
  t.equal(await covers('ada@rival.example'), false, 'and those of this agency only')

  const asked = dns.asked.length
  await app.domainChecks.run()
  t.equal(dns.asked.length, asked, 'not twice in a day')
  await nextDay(app)
  t.equal(dns.asked.length, asked + 2)

  const kept = dns.answers.get(record) as string[]
  dns.answers.set(record, [])
  for (let day = 0; day < 2; day++) await nextDay(app)
  t.match(await read(acme, 'acme.example'), { status: 'failing', verified_at: String })
  t.equal(await covers('ada@acme.example'), true)
  dns.answers.set(record, kept)
  await nextDay(app)
  t.equal((await read(acme, 'acme.example')).status, 'verified', 'the days without it are forgotten')

  for (let day = 0; day < 4; day++) {
    dns.answers.set(record, 'server_failure')
    await nextDay(app)
  }
  t.equal((await read(acme, 'acme.example')).status, 'verified', 'name servers that fail end no proof')

  dns.answers.delete(record)
  for (let day = 0; day < 3; day++) await nextDay(app)
  t.match(await read(acme, 'acme.example'), { status: 'pending', verified_at: null })
  t.equal(await covers('ada@acme.example'), false)
  t.equal((await read(rival, 'rival.example')).status, 'verified')
  t.equal((await actions(app, acme)).at(-1), 'domain.lost acme.example')
  t.notMatch(await actions(app, rival), ['domain.lost'])
  app.mail.wake()
  await eventually(() => mailsTo(app, acme.owner.email).some(({ subject }) => subject.includes('acme.example')))
  t.equal(mailsTo(app, rival.owner.email).filter(({ subject }) => subject.includes('.example')).length, 0)

  const before = dns.asked.length
  await nextDay(app)
  t.equal(dns.asked.length, before + 1, 'one that is lost is looked up when somebody asks for it')
  dns.answers.set(record, kept)
  t.equal((await verify(acme, 'acme.example')).json().status, 'verified')
})

t.test('several processes share the work of a day', async (t) => {
  const { dns, app, acme } = await start(t)
  const other = await startApp(t, { DNS_SERVERS: dns.address }, app.database)
  const record = await prove(acme, dns, 'acme.example')
  dns.answers.delete(record)
  const asked = dns.asked.length
  await allRows(app.database, "update tenant_domains set due_at = now() - interval '1 second'")
  await Promise.all([app, other].flatMap(({ domainChecks }) => [domainChecks.run(), domainChecks.run()]))
  t.equal(dns.asked.length, asked + 1)
  const [row] = await allRows(app.database, 'select failures from tenant_domains')
  t.equal(row.failures, 1)
})

import t from 'tap'
import { createRangeTest } from '../src/http/addresses.ts'
import { withClient } from './databases.ts'
import { allRows, createTenant, eventually, post, startApp, type Tenant } from './harness.ts'
import { from } from './requests.ts'

/*
 * API keys where they meet other parts: limits, the log, the settings of the agency, clocks, and a database that fails.
 */

const input = { name: 'Accounting', role: 'admin', permissions: ['tenant:read', 'tenant:write'] }
const tenantPath = '/api/v1/tenant'

async function make(tenant: Tenant, more: object = {}) {
  const reply = await tenant.send(post('/api-keys', { ...input, ...more }))
  if (reply.statusCode !== 201) throw new Error(reply.body)
  return reply.json()
}

t.test('a key that may not be used from an address counts for the address, and not for its owner', async (t) => {
  const app = await startApp(t, { TRUST_PROXY: '10.0.0.1', RATE_LIMIT: '20/1m', RATE_LIMIT_KEY: '20/1m' })
  const acme = await createTenant(app, 'acme')
  const { key } = await make(acme, { cidrs: ['192.0.2.0/24'] })
  const read = (ip: string) => acme.with(key, { url: tenantPath, ...from(ip) })
  t.equal((await read('192.0.2.1')).statusCode, 200)
  const statuses = []
  for (let i = 0; i < 30; i++) statuses.push((await read('198.51.100.1')).statusCode)
  t.strictSame(new Set(statuses), new Set([403, 429]))
  const own = await read('192.0.2.1')
  t.equal(own.statusCode, 200)
  t.match(
    own.headers.ratelimit,
    /"key";r=19\b/,
    'the first one, for which the database was asked, counts for the address too'
  )
})

t.test('ranges of IPv6 that hold the mapped addresses hold none of IPv4', (t) => {
  for (const range of ['::/8', '::1/8', '::/80', '::fffe:0:0/95']) {
    const test = createRangeTest([range])
    for (const address of ['8.8.8.8', '::ffff:8.8.8.8', '127.0.0.1']) t.notOk(test(address), `${range}: ${address}`)
    t.ok(test(range.split('/')[0] as string), range)
  }
  t.end()
})

t.test('a key where its id belongs is in no line of the log', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'debug' })
  const acme = await createTenant(app, 'acme')
  const { id, key } = await make(acme)
  const from = app.logLines.length
  for (const url of [`/api/v1/api-keys/${key}`, `/api/v1/api-keys/${key}/rotate`, `/api/v1/files/${key}/content`]) {
    for (const method of ['GET', 'POST', 'DELETE'] as const) {
      const reply = await acme.send({ method, url, ...(method === 'POST' && { payload: {} }) })
      t.ok([400, 404, 405].includes(reply.statusCode), `${method} ${url}: ${reply.statusCode}`)
    }
  }
  await acme.send({ method: 'DELETE', url: `/api/v1/api-keys/${id}` })
  const lines = app.logLines.slice(from).join('')
  t.notMatch(lines, key)
  t.match(lines, `"url":"/api/v1/api-keys/${id}"`, 'the control: an id is there')
})

t.test('a key changes no setting by which one could come in', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { key } = await make(acme)
  const patch = (payload: object) => acme.with(key, { method: 'PATCH', url: tenantPath, payload })
  for (const settings of [
    { allowed_origins: ['https://evil.example'] },
    { allowed_origins: null },
    { mfa_required_from: '2027-01-01T00:00:00Z' }
  ]) {
    const reply = await patch({ settings })
    t.match(
      reply.json(),
      { status: 403, code: 'forbidden', detail: 'no API key may do this' },
      JSON.stringify(settings)
    )
  }
  t.equal((await patch({ name: 'The ACME agency' })).statusCode, 200, 'the control')
})

t.test('the token endpoint says that an agency is suspended, to the holder of the key', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { id, key } = await make(acme)
  const token = (secret: string) =>
    acme.anonymous({
      method: 'POST',
      url: '/api/v1/auth/token',
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      payload: new URLSearchParams({
        grant_type: 'client_credentials',
        client_id: id,
        client_secret: secret
      }).toString()
    })
  const good = await token(key)
  t.match(good.headers, { 'cache-control': 'no-store', pragma: 'no-cache' })
  await acme.send({ method: 'DELETE', url: tenantPath, payload: { slug: 'acme' } })
  await eventually(async () => (await acme.with(key, tenantPath)).statusCode === 403)
  const general = (secret: string) =>
    app.inject({
      method: 'POST',
      url: '/api/v1/auth/token',
      headers: { host: 'localhost', 'content-type': 'application/x-www-form-urlencoded' },
      payload: new URLSearchParams({
        grant_type: 'client_credentials',
        client_id: id,
        client_secret: secret
      }).toString()
    })
  t.match((await general(key)).json(), { error: 'invalid_client', detail: 'the agency is suspended' })
  const wrong = (await general(`${key.slice(0, -1)}x`)).json()
  t.match(wrong, { error: 'invalid_client' })
  t.notOk('detail' in wrong)
})

t.test('a time of expiry is one that every client can read', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  for (const expires_at of ['9999-12-31T23:59:59-15:00', '9999-12-31T23:59:60-00:01']) {
    const reply = await acme.send(post('/api-keys', { ...input, expires_at }))
    t.match(reply.json(), { status: 400, errors: [{ path: '/body/expires_at' }] }, expires_at)
  }
  const made = await make(acme, { expires_at: '2099-06-01T00:00:00+05:30', cidrs: ['192.0.2.77/24', '10.1.2.3'] })
  t.equal(made.expires_at, '2099-05-31T18:30:00.000Z')
  const [event] = await allRows(app.database, "select detail from audit_events where action = 'api_key.created'")
  const { name, role, permissions, cidrs, expires_at } = made
  t.strictSame(event?.detail, { after: { name, role, permissions, cidrs, expires_at } }, 'the log has what is stored')
})

t.test('keys that have expired make room for others', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const plant = (count: number, expires: string) =>
    allRows(
      app.database,
      `insert into api_keys (tenant_id, id, name, role, permissions, cidrs, secret_hash, created_by, expires_at)
       select $1, uuid_v7(), 'old', 'viewer', '{files:read}', '{}', sha256(n::text::bytea), $2, ${expires}
       from generate_series(1, $3) n`,
      [acme.id, acme.owner.id, count]
    )
  await plant(40, "now() - interval '1 hour'")
  await plant(60, 'null')
  t.equal((await acme.send(post('/api-keys', input))).statusCode, 201)
  const [{ n }] = await allRows(app.database, 'select count(*)::int as n from api_keys')
  t.equal(n, 61)
})

t.test('a use that could not be written down is written down later', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { id, key } = await make(acme)
  const asAdmin = (text: string) => withClient(app.database.postgres, (client) => client.query(text))
  await asAdmin('revoke execute on function note_key_uses(uuid[], uuid[], timestamptz[]) from aggios_app')
  t.equal((await acme.with(key, tenantPath)).statusCode, 200)
  await app.keyUses.run()
  const lastUsed = async () => (await acme.send(`/api/v1/api-keys/${id}`)).json().last_used_at
  t.equal(await lastUsed(), null)
  await asAdmin('grant execute on function note_key_uses(uuid[], uuid[], timestamptz[]) to aggios_app')
  await app.keyUses.run()
  t.ok(await lastUsed())
})

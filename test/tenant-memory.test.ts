import t, { type Test } from 'tap'
import { systemScope } from '../db/gate/gate-query.ts'
import { changePlan, setPlan } from '../db/queries/plans.ts'
import type { TenantEntry } from '../plugins/tenancy/tenants.ts'
import {
  createTenant,
  createTestDatabase,
  eventually,
  send,
  setStatus,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
import { stopwatch } from './machine.ts'
import { me } from './requests.ts'

/*
 * The cache of tenants in a process: one entry for each, read once, and found by the id in a token and by the slug in a host name.
 */

const lookupNames = ['find_tenant', 'tenant_entry']

/** Records the queries about tenants from now on. `hold` delays their answers until its promise resolves. */
function watchLookups(app: TestApp, hold: () => Promise<void> | undefined = () => undefined): string[] {
  const lookups: string[] = []
  const { query } = app.gate
  app.gate.query = async (settings, statement, values) => {
    const rows = await query(settings, statement, values)
    if (lookupNames.includes(statement.name)) {
      lookups.push(statement.name)
      await hold()
    }
    return rows
  }
  return lookups
}

/** The status of a signed-in read at a process. */
const on = async (app: TestApp, { host, owner }: Tenant) =>
  (await send(app, host, { url: me, headers: { authorization: `Bearer ${owner.tokens.access_token}` } })).statusCode

t.test('a tenant is looked up once', async (t) => {
  const database = await createTestDatabase(t)
  const first = await startApp(t, {}, database)
  const acme = await createTenant(first, 'acme')

  t.test('by the first request with a token, for its limits and its host', async (t) => {
    const app = await startApp(t, {}, database)
    const lookups = watchLookups(app)
    t.equal(await on(app, acme), 200)
    t.strictSame(lookups, ['tenant_entry'])
    t.equal(await on(app, acme), 200)
    t.equal((await send(app, acme.host, me)).statusCode, 401)
    t.equal(lookups.length, 1)
    t.match(app.tenants.stats(), { known: 1 })
  })
  t.test('by the first one without, for those with tokens too', async (t) => {
    const app = await startApp(t, {}, database)
    const lookups = watchLookups(app)
    t.equal((await send(app, acme.host, me)).statusCode, 401)
    t.strictSame(lookups, ['find_tenant'])
    t.equal(await on(app, acme), 200)
    t.equal(lookups.length, 1)
    t.equal(app.tenants.peek('acme')?.limits, app.tenants.limitsOf(acme.id), 'one entry')
  })
  t.test('by whoever comes first of many at once', async (t) => {
    const app = await startApp(t, {}, database)
    const lookups = watchLookups(app)
    t.strictSame(await Promise.all(Array.from({ length: 20 }, () => on(app, acme))), Array(20).fill(200))
    t.strictSame(lookups, ['tenant_entry'])
  })
  t.test('and not at all for who asks too often', async (t) => {
    const app = await startApp(t, { RATE_LIMIT: '1/1m' }, database)
    const lookups = watchLookups(app)
    t.equal(await on(app, acme), 200)
    app.tenants.created('acme')
    t.equal(await on(app, acme), 429)
    t.equal(lookups.length, 1)
  })
  t.test('with objects of its own only where it differs from others', async (t) => {
    const [rival, third] = [await createTenant(first, 'rival'), await createTenant(first, 'third')]
    const payload = { settings: { locale: 'pt-BR' } }
    t.equal((await third.send({ method: 'PATCH', url: '/api/v1/tenant', payload })).statusCode, 200)
    const app = await startApp(t, {}, database)
    for (const each of [acme, rival, third]) t.equal(await on(app, each), 200)
    const [one, two, other] = ['acme', 'rival', 'third'].map((slug) => app.tenants.peek(slug))
    t.equal(one?.limits, two?.limits)
    t.equal(one?.settings, two?.settings)
    t.strictSame([one?.settings, other?.settings], [{}, payload.settings])
  })
})

t.test('what changes is in force in every process within a second, by id and by slug', async (t) => {
  const database = await createTestDatabase(t)
  const [app, other] = [await startApp(t, {}, database), await startApp(t, {}, database)]
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const scope = { tenant_id: acme.id, user_id: null, request: '' }
  for (const each of [app, other]) for (const tenant of [acme, rival]) t.equal(await on(each, tenant), 200)
  const kept = other.tenants.peek('rival')

  /** One process looks up by id first, and the other by slug. Both must find the same entry. */
  async function isSoon(t: Test, wanted: Partial<TenantEntry>): Promise<void> {
    const elapsed = stopwatch()
    const isSo = (found: TenantEntry | undefined) => JSON.stringify({ ...found, ...wanted }) === JSON.stringify(found)
    await eventually(async () => {
      await app.tenants.limitsOf(acme.id)
      return isSo(app.tenants.peek('acme'))
    })
    await eventually(async () => isSo(await other.tenants.find('acme')))
    const ms = elapsed()
    t.ok(ms < 1500, `after ${ms} ms`)
    for (const each of [app, other]) {
      t.match(await each.tenants.find('acme'), wanted)
      t.equal(await each.tenants.limitsOf(acme.id), each.tenants.peek('acme')?.limits)
    }
  }

  t.test('another plan, and what it allows', async (t) => {
    const pro = { requests: 100, window_seconds: 60, storage_quota: 2 ** 30 }
    await app.gate.query(systemScope, setPlan, { name: 'pro', ...pro })
    await app.gate.transaction(scope, (trx) => changePlan(trx, acme.id, 'pro'))
    await isSoon(t, { limits: pro })
    const more = { ...pro, requests: 200 }
    await app.gate.query(systemScope, setPlan, { name: 'pro', ...more })
    await isSoon(t, { limits: more })
    t.match(await other.tenants.limitsOf(rival.id), { requests: null })
  })
  t.test('its settings', async (t) => {
    for (const each of [app, other]) t.equal(await on(each, rival), 200)
    const before = other.tenants.peek('rival')
    t.not(before, kept, 'a plan is any tenant\u2019s')
    const payload = { settings: { allowed_origins: ['https://app.acme.example'] } }
    t.equal((await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload })).statusCode, 200)
    await isSoon(t, payload)
    t.equal(other.tenants.peek('rival'), before, 'nobody else is read again')
  })
  t.test('that it is suspended, and that it is back', async (t) => {
    for (const status of ['suspended', 'active'] as const) {
      await setStatus(app, acme, status)
      await isSoon(t, { status })
      for (const each of [app, other]) t.equal(await on(each, acme), status === 'active' ? 200 : 403)
    }
  })
})

t.test('what cannot be remembered is read again', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const scope = { tenant_id: acme.id, user_id: null, request: '' }
  await app.gate.query(systemScope, setPlan, { name: 'pro', requests: 1, window_seconds: 60, storage_quota: null })

  for (const [by, look, plan, before] of [
    ['id', async () => app.tenants.limitsOf(acme.id), 'pro', null],
    ['slug', async () => (await app.tenants.find('acme'))?.limits, 'free', 1]
  ] as const) {
    t.test(`because it changed while it was looked up by ${by}`, async (t) => {
      await app.revocations.readNow()
      app.tenants.created('acme')
      let open = () => {}
      const door = new Promise<void>((done) => {
        open = done
      })
      const { query } = app.gate
      const lookups = watchLookups(app, () => door)
      const early = look()
      await eventually(() => lookups.length === 1)
      await app.gate.transaction(scope, (trx) => changePlan(trx, acme.id, plan))
      await app.revocations.readNow()
      open()
      t.match(await early, { requests: before }, 'as it was when it was asked')
      t.equal(app.tenants.peek('acme'), undefined)
      t.match(await look(), { requests: plan === 'pro' ? 1 : null })
      t.equal(lookups.length, 2)
      app.gate.query = query
    })
  }
  t.test('because the database was away: then the settings count', async (t) => {
    app.tenants.created('acme')
    const { query } = app.gate
    app.gate.query = async (settings, statement, values) => {
      if (lookupNames.includes(statement.name)) throw new Error('Connection terminated')
      return query(settings, statement, values)
    }
    t.strictSame(await app.tenants.limitsOf(acme.id), { requests: null, window_seconds: null, storage_quota: null })
    t.equal(await on(app, acme), 503)
    app.gate.query = query
    t.equal(await on(app, acme), 200)
  })
  t.test('because there is no such tenant', async (t) => {
    const { known } = app.tenants.stats()
    const lookups = watchLookups(app)
    const nobodys = acme.owner.id
    for (let i = 0; i < 2; i++) t.match(await app.tenants.limitsOf(nobodys), { requests: null })
    t.strictSame(lookups, ['tenant_entry', 'tenant_entry'])
    t.equal(app.tenants.stats().known, known)
  })
})

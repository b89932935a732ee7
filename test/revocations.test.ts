import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { setPlan } from '../db/plans.ts'
import { withClient } from './databases.ts'
import { allRows, asOwner, createTenant, eventually, send, startApp, type TestApp } from './harness.ts'

/*
 * What a process knows of revocations is what the database has, whatever has become of either meanwhile.
 */

const me = '/api/v1/users/me'
const nobody = { tenant_id: null, user_id: null, request: '' }

/** What becomes of each further read of revocations. */
function onRead(app: TestApp, act: <T>(read: () => Promise<T>) => Promise<T>): void {
  const { query } = app.gate
  app.gate.query = (scope, statement, values) => {
    const read = () => query(scope, statement, values)
    return statement.name.startsWith('revocations_') ? act(read) : read()
  }
}

t.test('what a failover has undone is not believed', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const status = async () => (await acme.send(me)).statusCode
  const published =
    "insert into revocations (kind, subject, state, expires_at) values ('member', $1, 'viewer', now() + '1 day')"
  await asOwner(app.database, acme.id, acme.owner.id, [[published, [acme.owner.id]]])
  await eventually(async () => (await status()) === 401)

  await allRows(app.database, 'delete from revocations')
  await app.revocations.readNow()
  t.equal(await status(), 401, 'nothing was noticed')
  let failures = 0
  onRead(app, (read) => (failures++ === 0 ? Promise.reject(new Error('Connection terminated')) : read()))
  await eventually(async () => (await status()) === 200)
  t.equal(app.revocations.stats().entries, 0)
})

t.test('a process that was halted has missed nothing', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  t.equal((await acme.anonymous(me)).statusCode, 401)
  // read, and then nothing for longer than what is published lives
  let halts = 0
  onRead(app, async (read) => {
    const rows = await read()
    if (halts++ === 0) await sleep(5500)
    return rows
  })
  await eventually(() => app.revocations.stats().lag_ms > 1000)
  await asOwner(app.database, acme.id, acme.owner.id, [
    ["update tenants set slug = 'other' where id = $1", [acme.id]],
    [
      "insert into revocations (kind, subject, state, expires_at) values ('tenant', $1, 'active', now() + '1 s')",
      [acme.id]
    ]
  ])
  t.equal((await acme.anonymous(me)).statusCode, 401, 'as it is remembered')
  await eventually(async () => (await send(app, 'acme.localhost', me)).statusCode === 404, 15_000)
  t.equal((await send(app, 'other.localhost', me)).statusCode, 401)
})

t.test('of two plans that change at once neither change is missed', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const limit = (requests: number) => ({ name: 'slow', requests, window_seconds: 60, storage_quota: null })
  await app.gate.query(nobody, setPlan, limit(10))
  await asOwner(app.database, acme.id, acme.owner.id, [["update tenants set plan = 'slow' where id = $1", [acme.id]]])
  await app.revocations.readNow()
  t.match(await app.tenants.limitsOf(acme.id), { requests: 10 })

  await withClient(app.database.postgres, async (client) => {
    await client.query('begin')
    await client.query("select set_plan('slow', 20, 60, null)")
    // has the later number, and is there earlier
    await app.gate.query(nobody, setPlan, { ...limit(1), name: 'quick' })
    await app.revocations.readNow()
    t.match(await app.tenants.limitsOf(acme.id), { requests: 10 })
    await client.query('commit')
  })
  await app.revocations.readNow()
  t.match(await app.tenants.limitsOf(acme.id), { requests: 20 })
})

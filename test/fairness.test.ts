import pg from 'pg'
import t, { type Test } from 'tap'
import { withClient } from './databases.ts'
import { allRows, createTenant, setStatus, startApp, type Tenant } from './harness.ts'
import { me } from './requests.ts'

// bounded in time: what others wait for beside who asks a lot

const rename = (name: string) => ({ method: 'PATCH', url: me, payload: { name } }) as const

/** Counts how often a request finds all connections of the pool in use. */
function countPoolWaits(t: Test): () => number {
  const pool = pg.Pool.prototype
  const { connect } = pool
  let waits = 0
  pool.connect = function (this: pg.Pool, ...args: unknown[]) {
    if (this.idleCount === 0 && this.totalCount >= this.options.max) waits++
    return (connect as (...args: unknown[]) => unknown).apply(this, args)
  } as typeof connect
  t.teardown(() => {
    pool.connect = connect
  })
  return () => waits
}

/** Reads and writes, four requests at a time. Resolves to the failures. */
async function work(tenant: Tenant): Promise<string[]> {
  const failures: string[] = []
  for (let round = 0; round < 10; round++) {
    const replies = await Promise.all([
      tenant.send(me),
      tenant.send('/api/v1/members'),
      tenant.send(rename(`Ada ${round}`)),
      tenant.send('/api/v1/audit-events')
    ])
    failures.push(...replies.filter(({ statusCode }) => statusCode !== 200).map(({ body }) => body))
  }
  return failures
}

t.test('an agency at ten times its limit, with slow queries, is no other\u2019s problem', async (t) => {
  const waits = countPoolWaits(t)
  const app = await startApp(t, { DATABASE_POOL: '10' })
  const [acme, rival] = await Promise.all([createTenant(app, 'acme'), createTenant(app, 'rival')])
  await allRows(app.database, "insert into plans values ('busy', 20, 3600, null)")
  await allRows(app.database, "update tenants set plan = 'busy' where id = $1", [acme.id])
  // the cached agency is read again
  await setStatus(app, acme, 'active')
  await app.revocations.readNow()
  await work(rival)

  await withClient(app.database.postgres, async (admin) => {
    // every change by acme's owner waits for this lock, until lock_timeout
    await admin.query('begin')
    await admin.query('select from users where id = $1 for update', [acme.owner.id])
    const flood = Promise.all(Array.from({ length: 200 }, (_, i) => acme.send(rename(`Hog ${i}`))))
    const before = waits()
    t.strictSame(await work(rival), [], 'the other agency sees no error')
    t.equal(waits() - before, 0, 'and waits for no connection')
    await admin.query('rollback')

    const codes = (await flood).map((reply) => (reply.statusCode === 200 ? 'done' : reply.json().code))
    const refused = codes.filter((code) => code === 'rate_limited').length
    t.equal(refused, 180, 'the limit holds')
    t.comment(`${refused} refused; of the others ${codes.filter((code) => code === 'done').length} done`)
  })
  t.equal((await rival.send(rename('Ada'))).statusCode, 200)
})

t.test('the half of one agency is given back', async (t) => {
  const app = await startApp(t, { DATABASE_POOL: '3' })
  const acme = await createTenant(app, 'acme')
  const replies = await Promise.all(Array.from({ length: 12 }, (_, i) => acme.send(rename(`Ada ${i}`))))
  t.strictSame([...new Set(replies.map(({ statusCode }) => statusCode))], [200])
  const scope = { tenant_id: acme.id, user_id: acme.owner.id, request: '' }
  for (let i = 0; i < 5; i++) {
    await t.rejects(
      app.gate.transaction(scope, async () => Promise.reject(new Error('undone'))),
      /undone/
    )
  }
  t.equal((await acme.send(rename('Ada'))).statusCode, 200)
})

import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { withClient } from './databases.ts'
import { asOwner, createTenant, post, startApp, type TestApp } from './harness.ts'
import { needsRedis, startRedis } from './redis.ts'

/*
 * Reads that a process answers from its memory: when it may, and when it asks the database.
 */

const me = '/api/v1/users/me'
const agency = '/api/v1/tenant'

/** How many remembered reads the database was asked, and how many memory answered, while `work` ran. */
async function counted(app: TestApp, work: () => Promise<unknown>) {
  const before = app.readMemory.stats()
  await work()
  const after = app.readMemory.stats()
  return { asked: after.questions - before.questions, hits: after.hits - before.hits }
}

const fromMemory = { asked: 0, hits: 1 }
const fromDatabase = { asked: 1, hits: 0 }

t.test('what memory answers', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const get = (url: string, headers = {}) => acme.send({ url, headers })

  for (const url of [me, agency]) {
    await t.test(url, async (t) => {
      await app.revocations.readNow()
      const first = await get(url)
      const tag = first.headers.etag as string
      let again = first
      t.strictSame(
        await counted(app, async () => {
          again = await get(url)
        }),
        fromMemory
      )
      t.equal(again.body, first.body, 'is the same')
      t.equal(again.headers.etag, tag)
      t.strictSame(
        await counted(app, async () => t.equal((await get(url, { 'if-none-match': tag })).statusCode, 304)),
        fromMemory,
        'its own tag'
      )
      for (const headers of [
        { 'if-none-match': '"9.9-000000000000"' },
        { 'if-none-match': `${tag}, "9.9-000000000000"` },
        { 'if-none-match': '*' },
        { 'cache-control': 'no-cache' },
        { 'cache-control': 'max-age=0' }
      ]) {
        await app.revocations.readNow()
        t.strictSame(await counted(app, () => get(url, headers)), fromDatabase, JSON.stringify(headers))
      }
    })
  }

  await t.test('who writes reads it at once, and nobody had to say so', async (t) => {
    await app.revocations.readNow()
    await get(me)
    t.equal((await acme.send({ method: 'PATCH', url: me, payload: { name: 'Grace' } })).statusCode, 200)
    t.equal((await get(me)).json().name, 'Grace')
    t.equal((await acme.send({ method: 'PATCH', url: agency, payload: { name: 'Better' } })).statusCode, 200)
    t.equal((await get(agency)).json().name, 'Better')
  })

  await t.test('a change by somebody else is known once the feed was read', async (t) => {
    await get(me)
    const change = "update users set name = 'Lin', version = version + 1 where id = $1"
    await asOwner(app.database, acme.id, acme.owner.id, [[change, [acme.owner.id]]])
    await app.revocations.readNow()
    t.equal((await get(me)).json().name, 'Lin')
  })

  await t.test('a change of nothing that is shown makes nothing be forgotten', async (t) => {
    await get(me)
    const newest = async () =>
      withClient(app.database.postgres, async (client) => (await client.query('select max(id) from changes')).rows)
    const before = await newest()
    const { refresh_token } = await acme.signIn()
    t.equal((await acme.anonymous(post('/auth/refresh', { refresh_token }))).statusCode, 200)
    t.strictSame(await newest(), before, 'neither a sign-in nor a refresh writes an entry')
    await app.revocations.readNow()
    t.strictSame(await counted(app, () => get(me)), fromMemory)
  })
})

t.test('what others announce makes a process read soon, and not too often', needsRedis, async (t) => {
  const redis = await startRedis(t)
  const app = await startApp(t, { REDIS_URL: redis.url })
  const { query } = app.gate
  let reads = 0
  app.gate.query = (scope, statement, values) => {
    if (statement.name === 'changes_unseen') reads++
    return query(scope, statement, values)
  }
  /** The reads while `announce` was called a hundred times, and those that time alone or a bound of 50 ms would give. */
  const during = async (announce: () => unknown) => {
    reads = 0
    const begin = performance.now()
    for (let count = 0; count < 100; count++) {
      await announce()
      await sleep(5)
    }
    const elapsed = performance.now() - begin
    return { reads, byTime: elapsed / 500 + 2, most: elapsed / 50 + elapsed / 500 + 2 }
  }
  const writes = await during(() => redis.admin.publish('aggios:writes', 'another process'))
  t.ok(writes.reads > writes.byTime && writes.reads <= writes.most, JSON.stringify(writes))
  const revoked = await during(() => redis.admin.publish('aggios:revocations', ''))
  t.ok(revoked.reads > revoked.most, `revocations are read at once: ${JSON.stringify(revoked)}`)
  const own = await during(() => app.shared.announce('revocations'))
  t.ok(own.reads <= own.byTime, `its own are no news: ${JSON.stringify(own)}`)
})

t.test('a transaction notes a subject once, and looks at none of the entries that have died', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const store =
    'insert into storage_usage (tenant_id, bytes) values ($1, 1) on conflict (tenant_id) do update set bytes = $2'
  const entries =
    'select count(*)::int as n from changes where kind = $1 and subject = $2 and xid = pg_current_xact_id()'
  await withClient(app.database.postgres, async (other) => {
    // so that nothing which dies meanwhile may be removed
    await other.query('begin isolation level repeatable read')
    await other.query('select from tenants')
    await withClient(app.database.postgres, async (client) => {
      for (let bytes = 2; bytes < 200; bytes++) await client.query(store, [acme.id, bytes])
      const looks = "select pg_stat_get_xact_tuples_returned('changes_subject'::regclass)::int as n"
      await client.query('begin')
      const [before] = (await client.query(looks)).rows
      await client.query(store, [acme.id, 300])
      await client.query(store, [acme.id, 301])
      const [after] = (await client.query(looks)).rows
      t.equal(after.n - before.n, 1, 'looked at one entry')
      t.strictSame((await client.query(entries, ['usage', acme.id])).rows, [{ n: 1 }])
      await client.query('savepoint before')
      await client.query('update users set version = version + 1 where id = $1', [acme.owner.id])
      await client.query('rollback to before')
      await client.query('update users set version = version + 1 where id = $1', [acme.owner.id])
      t.strictSame((await client.query(entries, ['user', acme.owner.id])).rows, [{ n: 1 }], 'also after a rollback')
      await client.query('commit')
    })
  })
})

t.test('with READ_MEMORY=off the database answers', async (t) => {
  const app = await startApp(t, { READ_MEMORY: 'off' })
  const acme = await createTenant(app, 'acme')
  await acme.send(me)
  t.strictSame(await counted(app, () => acme.send(me)), { asked: 0, hits: 0 })
})

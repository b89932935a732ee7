import t, { type Test } from 'tap'
import { age, createMonth, seal } from './audit-log.ts'
import { withClient } from './databases.ts'
import { allRows, createTenant, startApp, type Tenant, type TestApp } from './harness.ts'

/*
 * The audit log shows when it was changed, also by the owner of the database, and by code that runs inside the product.
 */

const verify = async (tenant: Tenant) => (await tenant.send('/api/v1/audit-events/verify')).json()

const record = (app: TestApp, tenant: Tenant, action: string) =>
  allRows(app.database, 'insert into audit_events (tenant_id, action) values ($1, $2) returning id', [
    tenant.id,
    action
  ])

/** Makes an audit log of an agency with four segments, sealed and signed. */
async function sealedLog(t: Test) {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await seal(app)
  for (const action of ['one', 'two', 'three']) {
    await record(app, acme, action)
    await seal(app)
  }
  return { app, acme, rival, change: (text: string) => allRows(app.database, text, [acme.id]) }
}

t.test('the first event that was changed, removed or added is named', async (t) => {
  const { app, acme, rival, change } = await sealedLog(t)
  const intact = await verify(acme)
  t.match(intact, { status: 'intact', sealed_events: 4, broken: null, kept_from: null })
  t.ok(Date.parse(intact.signed_from) < Date.now())
  t.match(await verify(rival), { status: 'intact', sealed_events: 1 })
  t.match(app.logLines.join(''), '"signature":', 'heads go to the log')

  const [before] = await change(
    "update audit_events set action = 'forged' where tenant_id = $1 and action = 'two' returning id"
  )
  t.match(await verify(acme), { status: 'broken', broken: { id: before?.id, reason: 'changed' } })
  await change("update audit_events set action = 'two' where tenant_id = $1 and action = 'forged'")
  t.match(await verify(acme), { status: 'intact', head: intact.head })

  const places = {
    'into a segment':
      "(select created_at + interval '1 second' from audit_events where tenant_id = $1 and action = 'two')",
    'between two segments': "max(to_at) - interval '11 minutes 59 seconds'",
    'behind the last segment': "max(to_at) + interval '1 minute'"
  }
  await allRows(app.database, "update audit_horizon set sealed_to = sealed_to + interval '10 minutes'")
  for (const [place, at] of Object.entries(places)) {
    const [added] = await change(
      `insert into audit_events (tenant_id, action, created_at)
       select $1, 'slipped.in', place.at from (select ${at} as at from audit_seals where tenant_id = $1 limit 1) place returning id`
    )
    t.match(await verify(acme), { status: 'broken', broken: { id: added?.id, reason: 'added' } }, place)
    await change("delete from audit_events where tenant_id = $1 and action = 'slipped.in'")
  }
  t.match(await verify(acme), { status: 'intact' })

  const [removed] = await change("delete from audit_events where tenant_id = $1 and action = 'three' returning id")
  t.match(await verify(acme), { status: 'broken', broken: { id: removed?.id, reason: 'removed' } })
  const [all] = await allRows(app.database, 'delete from audit_events where tenant_id = $1 returning id', [rival.id])
  t.match(await verify(rival), { status: 'broken', broken: { id: all?.id, reason: 'removed' } })
})

/** Computes the hashes and digests again over the present rows, as an attacker would who can write to all tables. */
const forgeChain = `
  do $$
  declare
    seal record;
    before bytea := '';
    fresh bytea[];
  begin
    for seal in select * from audit_seals where tenant_id = 'TENANT' order by seq loop
      select array_agg(audit_hash(e) order by e.created_at, e.id) into fresh
      from audit_events e where e.id = any (seal.ids);
      before := sha256(before || (select string_agg(h, '' order by place) from unnest(fresh) with ordinality k (h, place)));
      update audit_seals set hashes = fresh, digest = before where tenant_id = seal.tenant_id and seq = seal.seq;
    end loop;
  end $$`

t.test('a chain that the owner of the database makes anew does not fit its signature', async (t) => {
  const { app, acme, change } = await sealedLog(t)
  await change("update audit_events set action = 'forged' where tenant_id = $1 and action = 'two'")
  await allRows(app.database, forgeChain.replace('TENANT', acme.id))
  t.match(await verify(acme), { status: 'broken', broken: { segment: 4, reason: 'unsigned' } })

  await record(app, acme, 'four')
  await seal(app)
  t.match(
    await verify(acme),
    { status: 'broken', broken: { segment: 5, reason: 'unsigned' } },
    'nor is it taken over later'
  )
  t.match(app.logLines.join(''), 'does not continue what was signed')
  await change('delete from audit_signatures where tenant_id = $1')
  t.match(await verify(acme), { status: 'broken', broken: { reason: 'unsigned' } }, 'nor when the signatures are gone')
})

t.test('what the owner of the database takes away is missed', async (t) => {
  const { acme, change } = await sealedLog(t)
  t.test('the end of the chain', async (t) => {
    await change(`with gone as (delete from audit_seals where tenant_id = $1 and seq = 4 returning ids)
      delete from audit_events using gone where id = any (ids)`)
    t.match(await verify(acme), { status: 'broken', broken: { segment: 4, reason: 'removed' } })
  })
  t.test('its beginning', async (t) => {
    await change(`with gone as (delete from audit_seals where tenant_id = $1 and seq < 3 returning ids)
      delete from audit_events using gone where id = any (ids)`)
    t.match(await verify(acme), { status: 'broken', broken: { segment: 3, reason: 'removed' } })
  })
  t.test('all of it, also when it is called a retention', async (t) => {
    await change('delete from audit_events where tenant_id = $1')
    await change('update audit_horizon set dropped_to = now() where $1::uuid is not null')
    t.match(await verify(acme), { status: 'broken', kept_from: null })
  })
})

t.test('who serves can neither drop, nor seal ahead, nor spoil a chain', async (t) => {
  const { app, acme } = await sealedLog(t)
  await createMonth(app.database, "'2001-01-01'::date")
  await record(app, acme, 'young')
  await withClient(app.database.app, async (client) => {
    const value = async (text: string) => (await client.query({ text, rowMode: 'array' })).rows[0]?.[0]
    t.equal(await value("select drop_audit_partitions('28 days')"), 0, 'as the version before did')
    t.equal(await value('select dropped from drop_audit_months()'), 0, 'the owner has said nothing of dropping')
    t.equal(await value("select count(*)::int from seal_audit('0')"), 0)
    t.equal(await value('select prune_audit_seals(1000)::int'), 0)
    for (const text of [
      'update audit_retention set keep_days = 28',
      'select from audit_retention',
      "insert into audit_statements values ('dropped_to', now(), 28, 'k', sha256('x'))",
      'delete from audit_signatures',
      'insert into audit_signatures (seq) values (1)',
      'update audit_horizon set dropped_to = now()',
      'delete from audit_seals'
    ]) {
      await t.rejects(client.query(text), { code: '42501' }, text)
    }
    const [garbage] = [`decode('${'00'.repeat(32)}', 'hex')`]
    await client.query(`select add_audit_statement('dropped_to', now(), 28, 'no-key', ${garbage})`)
    await client.query(
      `select add_audit_signatures(array['${acme.id}']::uuid[], array[4], 'no-key', array[${garbage}])`
    )
  })
  const months = await allRows(app.database, "select to_regclass('audit_events_2001_01') is not null as there")
  t.strictSame(months, [{ there: true }])
  t.match(await verify(acme), { status: 'intact', kept_from: null }, 'garbage beside a good signature does no harm')

  await age(app)
  await withClient(app.database.app, async (client) => {
    const [{ number }] = (await client.query('select ticket_number as number from audit_state()')).rows
    const text = `select count(*)::int as n from seal_audit_events($1, sha256('a guess'), sha256('mine'))`
    await t.rejects(client.query(text, [number]), /not the one that was announced/, 'without the key nothing is sealed')
    t.strictSame((await client.query(text, [Number(number) - 1])).rows, [{ n: 0 }])
  })
  await app.housekeeping.run()
  t.match(await verify(acme), { status: 'intact', sealed_events: 5 })
})

t.test('months go when the owner says so, and the proof of it stays', async (t) => {
  const { app, acme, change } = await sealedLog(t)
  await createMonth(app.database, "'2001-01-01'::date")
  await createMonth(app.database, "'2001-02-01'::date")
  await change(`insert into audit_seals (tenant_id, seq, from_at, to_at, ids, hashes, digest)
    select $1, seq - 10, '2001-01-01', ('2001-01-0' || seq + 2)::timestamptz, '{}', '{}', sha256('x') from audit_seals where tenant_id = $1`)
  const seals = async () =>
    (await change('select seq from audit_seals where tenant_id = $1 order by seq')).map(({ seq }) => seq)
  await app.housekeeping.run()
  t.strictSame((await seals()).length, 8, 'without a word of the owner all stays')

  await withClient(app.database.owner, (client) => client.query('update audit_retention set keep_days = 365'))
  const dropped = () => allRows(app.database, "select to_regclass('audit_events_2001_01') is null as gone")
  await app.housekeeping.run()
  t.strictSame(await dropped(), [{ gone: true }])
  t.strictSame(await seals(), [-6, 1, 2, 3, 4], 'only the last of the old ones is left')
  t.match(await verify(acme), { status: 'intact', sealed_events: 4, kept_from: '2001-03-01T00:00:00.000Z' })
})

t.test('a new key takes over before the old one goes', async (t) => {
  const { app, acme } = await sealedLog(t)
  const keyed = async (pepper: string) => {
    const other = await startApp(t, { PASSWORD_PEPPER: pepper }, app.database)
    await other.housekeeping.run()
    const authorization = `Bearer ${acme.owner.tokens.access_token}`
    const url = '/api/v1/audit-events/verify'
    return (await other.inject({ url, headers: { host: acme.host, authorization } })).json()
  }
  t.match(await keyed('another pepper of the tests,a pepper of the tests'), { status: 'intact' })
  await allRows(app.database, 'update users set password_hash = null, pepper_id = null')
  t.match(await keyed('another pepper of the tests'), { status: 'intact' })
  const { signed_from } = await verify(acme)
  const anew = await keyed('a pepper that signed nothing of it')
  t.ok(anew.signed_from > signed_from, 'where all keys are lost, it shows from when on the log is signed')
})

t.test('signing begins with what is sealed by now, and never later', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  await allRows(app.database, "update audit_horizon set sealed_to = 'infinity'")
  await app.housekeeping.run()
  const { status, signed_from } = await verify(acme)
  t.equal(status, 'intact')
  t.ok(Date.parse(signed_from) <= Date.now())
})

import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { systemScope } from '../db/gate/gate-query.ts'
import { statement } from '../db/gate/statement.ts'
import type { Job } from '../plugins/maintenance/jobs.ts'
import { processDue } from '../src/due-work.ts'
import { render } from '../src/metrics.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import { parseExposition } from './exposition.ts'
import { allRows, createTestDatabase, eventually, startApp, type TestApp } from './harness.ts'

/*
 * What every background job gets (plugins/maintenance/jobs.ts): pauses, backoff, records, metrics, logs, and an end. The jobs
 * of the product have tests of their own.
 */

type Work = Job['tasks'][string]
type Probe = ReturnType<TestApp['jobs']['define']>

const never = 3_600_000

/** An application with a job of the test's own. */
async function startWith(t: Test, job: Partial<Job> & Pick<Job, 'tasks'>, env = {}, database?: DatabaseUrls) {
  const all = { name: 'probe', intervalMs: never, ...job }
  let probe: Probe | undefined
  const app = await startApp(t, { LOG_LEVEL: 'info', ...env }, database, (app) => {
    app.register(async () => {
      probe = app.jobs.define(all)
    })
  })
  return { app, job: probe as Probe }
}

async function recordOf(app: TestApp, name = 'probe') {
  const [row] = await allRows(app.database, 'select succeeded_at, failed_at, error from job_runs where name = $1', [
    name
  ])
  return row
}

async function metric(app: TestApp, name: string, task: string): Promise<number> {
  const text = render([{ worker: '1', families: await app.metrics.collect() }])
  return parseExposition(text).sum(`aggios_job_${name}`, { task })
}

const logged = (app: TestApp, text: string) =>
  app.logLines.map((line) => JSON.parse(line)).filter(({ msg }) => msg.includes(text))

t.test('a job runs again and again, and its success is recorded and measured', async (t) => {
  let runs = 0
  const tasks = { count: async () => void runs++ }
  const { app } = await startWith(t, { tasks, intervalMs: 1, atStart: true })
  await eventually(() => runs > 20)
  const record = await recordOf(app)
  t.match(record, { succeeded_at: Date, failed_at: null })
  t.equal(await metric(app, 'interval_seconds', 'count'), 0.001)
  t.ok((await metric(app, 'last_success_timestamp_seconds', 'count')) > 0)
  const before = runs
  await eventually(() => runs > before + 20)
  t.strictSame(await recordOf(app), record, 'the success of one that runs often is not written each time')
})

t.test('a job that is off does nothing, and says why', async (t) => {
  const { app, job } = await startWith(t, { tasks: { none: async () => void t.fail() }, atStart: true, off: 'not now' })
  job.wake()
  t.strictSame(await job.run(), { outcome: 'off', reason: 'not now' })
  t.equal(await recordOf(app), undefined)
  const families = await app.metrics.collect()
  t.notMatch(JSON.stringify(families), /"task":"none"/)
})

t.test('wakes during a run mean exactly one more run', async (t) => {
  const seen = { begun: 0, atOnce: 0, ended: 0 }
  let release = Promise.withResolvers<void>()
  const { job } = await startWith(t, {
    tasks: {
      async wait() {
        seen.begun++
        seen.atOnce = Math.max(seen.atOnce, seen.begun - seen.ended)
        await release.promise
        seen.ended++
      }
    }
  })
  const first = job.run()
  for (let i = 0; i < 5; i++) job.wake()
  const [second, third] = [job.run(), job.run()]
  await sleep(10)
  t.equal(seen.begun, 1)
  release.resolve()
  release = Promise.withResolvers()
  t.strictSame(await first, { outcome: 'succeeded' })
  await sleep(10)
  t.equal(seen.begun, 2)
  release.resolve()
  await Promise.all([second, third])
  await sleep(20)
  t.strictSame(seen, { begun: 2, atOnce: 1, ended: 2 })
})

t.test('a task that fails', async (t) => {
  const attempts: number[] = []
  let runs = 0
  let failure: Error | undefined = new Error('no luck')
  const { app, job } = await startWith(t, {
    intervalMs: 1,
    tasks: {
      async count() {
        runs++
      },
      async fail() {
        attempts.push(runs)
        if (failure) throw failure
      }
    }
  })
  await eventually(() => attempts.length >= 6)
  const { length } = attempts
  t.strictSame(attempts.slice(0, 6), [1, 2, 4, 8, 12, 16], 'is tried less often, but at least in every fourth run')
  t.match(await recordOf(app), { failed_at: Date, succeeded_at: null, error: 'no luck' })
  t.ok((await metric(app, 'failures_total', 'fail')) >= length)
  t.equal(await metric(app, 'failures_total', 'count'), 0, 'while the others go on')
  t.match(logged(app, 'probe failed'), [{ level: 40, task: 'fail', job: 'probe', err: { message: 'no luck' } }])
  t.equal(logged(app, 'probe failed').length, 1, 'is logged once')

  t.strictSame(await job.run(), { outcome: 'failed', failure }, 'is tried at once by a run that was asked for')
  const before = attempts.length
  job.wake()
  await eventually(() => attempts.length > before)

  failure = new Error('another reason')
  await job.run()
  t.equal(logged(app, 'probe failed').length, 2, 'is logged again for another reason')

  failure = undefined
  t.strictSame(await job.run(), { outcome: 'succeeded' })
  t.equal(logged(app, 'probe succeeds again').length, 1)
  t.match(await recordOf(app), { failed_at: Date, succeeded_at: Date })
  const [run, tried] = [runs, attempts.length]
  await eventually(() => runs > run + 8)
  t.ok(attempts.length - tried >= 8, 'and is in each run again')
})

t.test('a job that hangs stops no other job', async (t) => {
  const hang = Promise.withResolvers<void>()
  const { app, job } = await startWith(t, { tasks: { hang: () => hang.promise } })
  const hanging = job.run()
  for (const other of [app.housekeeping, app.objectSweep, app.domainChecks]) {
    t.strictSame(await other.run(), { outcome: 'succeeded' })
  }
  for (const name of ['housekeeping', 'object_sweep', 'domain_checks', 'outbox', 'stale_parts']) {
    await eventually(async () => (await recordOf(app, name))?.succeeded_at)
  }
  t.equal(await recordOf(app), undefined)
  hang.resolve()
  t.strictSame(await hanging, { outcome: 'succeeded' })
})

t.test('an item that fails is no reason to wait, and the run says so', async (t) => {
  let runs = 0
  const { app, job } = await startWith(t, {
    tasks: {
      async items({ itemFailed }) {
        runs++
        for (const id of ['a', 'b', 'c']) itemFailed(new Error(`no ${id}`), { item_id: id })
      }
    }
  })
  for (let i = 0; i < 4; i++) t.match(await job.run(), { outcome: 'failed', failure: { message: 'no a' } })
  t.equal(runs, 4)
  t.match(await recordOf(app), { error: 'no a', succeeded_at: null })
  t.equal(logged(app, 'an item of probe failed').length, 4, 'one line for each run')
  t.equal(await metric(app, 'failures_total', 'items'), 0, 'the task itself has ended well')
})

t.test('a run that can not be recorded ends as it would, and the log says so once', async (t) => {
  const { app, job } = await startWith(t, { tasks: { fail: () => Promise.reject(new Error('no luck')) } })
  const rights = 'execute on function record_job(text, text)'
  await withClient(app.database.postgres, (client) => client.query(`revoke ${rights} from aggios_app`))
  for (let i = 0; i < 3; i++) t.match(await job.run(), { outcome: 'failed', failure: { message: 'no luck' } })
  t.equal(logged(app, 'could not be recorded').length, 1)
  await withClient(app.database.postgres, (client) => client.query(`grant ${rights} to aggios_app`))
  await job.run()
  t.match(await recordOf(app), { error: 'no luck' })
})

t.test('several processes share the work, and no item is worked on twice', async (t) => {
  const database = await createTestDatabase(t)
  await withClient(database.postgres, (client) =>
    client.query(
      `create table probes (id integer primary key, due_at timestamptz not null default now(), worked integer not null default 0);
       insert into probes select generate_series(1, 300);
       grant select, update on probes to aggios_app`
    )
  )
  const claimProbes = statement(
    'claim_probes',
    (_, $: { batch: number }) => sql<{ id: number }>`
      with due as materialized (select id from probes where due_at <= now() order by id limit ${$.batch} for update skip locked)
      update probes p set due_at = now() + interval '1 minute' from due where p.id = due.id returning p.id`,
    { writes: true }
  )
  const settleProbe = statement(
    'settle_probe',
    (_, $: { id: number }) =>
      sql<{ id: number }>`update probes set worked = worked + 1, due_at = 'infinity' where id = ${$.id} returning id`,
    { writes: true }
  )
  const shares = [0, 0]
  const workOf =
    (index: number, app: () => TestApp): Work =>
    ({ stopping }) =>
      processDue({
        batch: 5,
        concurrency: 3,
        stopping,
        claim: (batch) => app().gate.query(systemScope, claimProbes, { batch }),
        async work({ id }) {
          await sleep(1)
          await app().gate.query(systemScope, settleProbe, { id })
          shares[index] = (shares[index] as number) + 1
        }
      })
  const processes: Awaited<ReturnType<typeof startWith>>[] = []
  for (const index of [0, 1]) {
    const tasks = { probes: workOf(index, () => processes[index]?.app as TestApp) }
    processes.push(await startWith(t, { tasks }, {}, database))
  }
  await Promise.all([...processes, ...processes].map(({ job }) => job.run()))
  t.strictSame(await allRows(database, 'select worked, count(*)::int from probes group by worked'), [
    { worked: 1, count: 300 }
  ])
  t.equal((shares[0] as number) + (shares[1] as number), 300)
  for (const share of shares) t.ok(share > 0, `${share}`)
})

t.test('a shutdown', async (t) => {
  t.test('waits for the run in progress, which can use the database to its end, and begins no other', async (t) => {
    const begun = Promise.withResolvers<void>()
    let runs = 0
    let worked: unknown
    let second = 0
    const { app, job } = await startWith(t, {
      intervalMs: 1,
      tasks: {
        async slow({ stopping }) {
          runs++
          begun.resolve()
          await sleep(200)
          t.equal(stopping.aborted, true)
          worked = await app.gate.query(
            systemScope,
            statement('probe_one', () => sql`select 1 as one`),
            {}
          )
        },
        async next() {
          second++
        }
      }
    })
    await begun.promise
    await app.close()
    t.strictSame(worked, [{ one: 1 }])
    job.wake()
    t.equal(await job.run(), undefined)
    await sleep(20)
    t.equal(runs, 1)
    t.equal(second, 0, 'nor another task')
    t.strictSame(logged(app, 'abandoned'), [])
  })

  t.test('abandons what does not end, after half of its time', async (t) => {
    const hang = Promise.withResolvers<void>()
    const { app, job } = await startWith(t, { tasks: { hang: () => hang.promise } }, { SHUTDOWN_TIMEOUT: '1' })
    const running = job.run()
    const startedAt = performance.now()
    await app.close()
    const ms = performance.now() - startedAt
    t.ok(ms >= 490, `${ms}`)
    t.match(logged(app, 'abandoned'), [{ level: 40, job: 'probe' }])
    hang.reject(new Error('the pool is closed'))
    t.equal(await running, undefined, 'its end counts as nothing')
    t.strictSame(logged(app, 'probe failed'), [])
  })

  t.test('of a process that could not start ends its jobs too', async (t) => {
    let runs = 0
    let app: FastifyInstance | undefined
    const started = startApp(t, {}, undefined, (starting) => {
      app = starting
      starting.register(async () => {
        starting.jobs.define({ name: 'probe', intervalMs: 1, tasks: { count: async () => void runs++ } })
        starting.addHook('onReady', async () => {
          while (runs < 3) await sleep(1)
          throw new Error('no port')
        })
      })
    })
    await t.rejects(started, { message: 'no port' })
    await app?.close()
    const before = runs
    await sleep(20)
    t.equal(runs, before)
  })
})

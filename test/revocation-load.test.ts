import { monitorEventLoopDelay } from 'node:perf_hooks'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import { allRows, asOwner, createTenant, eventually, startApp } from './harness.ts'
import { stopwatch } from './machine.ts'

// bounded in time: how soon a process starts

/*
 * The cost of many revocations in force: for the start of a process, its memory, and its event loop.
 *
 *   REVOCATIONS=1000000 npm test -- test/revocation-load.test.ts
 *
 * prints the figures for a million. The suite uses a tenth of that, with bounds in proportion.
 */

const count = Number(process.env.REVOCATIONS ?? 100_000)
const megabyte = 1024 * 1024

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

function memory() {
  collect()
  collect()
  const { rss, heapUsed, external } = process.memoryUsage()
  return { rss, alive: heapUsed + external }
}

t.test(`a process starts with ${count} living revocations`, async (t) => {
  const first = await startApp(t)
  const acme = await createTenant(first, 'acme')
  await acme.signIn()
  await first.close()
  // nine sessions that ended, to one person whose role changed or who signed out everywhere
  for (const [kind, subject, part] of [
    ['session', 'gen_random_uuid()', 0.9],
    ['member', 'gen_random_uuid()', 0.05],
    ['sessions', 'gen_random_uuid()', 0.05]
  ] as const) {
    const state = { session: 'null', member: "'viewer'", sessions: 'session_mark(clock_ms())::text' }[kind]
    await asOwner(first.database, acme.id, acme.owner.id, [
      // no two of these have one subject
      ['alter table changes disable trigger replace_revocation', []],
      [
        `insert into changes (kind, subject, state, expires_at)
         select '${kind}', ${subject}, ${state}, now() + interval '1 hour' from generate_series(1, $1::int)`,
        [Math.round(count * part)]
      ],
      ['alter table changes enable trigger replace_revocation', []]
    ])
  }
  await allRows(first.database, 'analyze revocations')

  const before = memory()
  const elapsed = stopwatch()
  const app = await startApp(t, {}, first.database)
  const startedIn = elapsed()
  const after = memory()
  const [rss, alive] = [(after.rss - before.rss) / megabyte, (after.alive - before.alive) / megabyte]
  t.equal(app.revocations.stats().entries, count)

  const delay = monitorEventLoopDelay({ resolution: 5 })
  delay.enable()
  const { query } = app.gate
  let pages = 0
  let failures = 0
  app.gate.query = (scope, statement, values) => {
    if (statement.name === 'changes_unseen' && failures++ === 0) return Promise.reject(new Error('terminated'))
    if (statement.name === 'changes_page') pages++
    return query(scope, statement, values)
  }
  await eventually(() => pages > count / 10_000, 60_000)
  await eventually(() => app.revocations.stats().lag_ms < 1000, 60_000)
  delay.disable()
  const again = memory()

  t.comment(
    `${count} revocations: started in ${Math.round(startedIn)} ms, ${Math.round(rss)} MB more resident, ` +
      `${Math.round(alive)} MB more alive; read again: event loop ${Math.round(delay.percentile(99) / 1e6)} ms (p99), ` +
      `${Math.round(delay.max / 1e6)} ms (longest)`
  )
  // the figure includes an application of its own
  const share = count / 1_000_000
  t.ok(startedIn < 10_000, `${startedIn} ms`)
  t.ok(alive < 30 + 200 * share, `${alive} MB alive`)
  t.ok((again.alive - after.alive) / megabyte < 10 + 20 * share, 'another read of everything keeps nothing twice')
  t.equal(app.revocations.stats().entries, count)
})

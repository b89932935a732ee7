import t from 'tap'
import { createWorld, runMatrix } from './isolation.ts'

t.test('no wrong actor gets through any operation', async (t) => {
  const startedAt = performance.now()
  const world = await createWorld(t)
  const outcome = await runMatrix(world, {
    report: (operation, cases, failures) => t.strictSame(failures, [], `${operation}: ${cases} cases`)
  })
  t.strictSame(outcome.failures, [])
  t.ok(outcome.operations >= 30, `${outcome.operations} operations`)
  t.ok(outcome.actors >= 40, `${outcome.actors} actors`)
  const { operations, actors, cases, failures } = outcome
  const took = ((performance.now() - startedAt) / 1000).toFixed(1)
  t.comment(`${operations} operations x ${actors} actors: ${cases} cases, ${failures.length} failures, in ${took} s`)
})

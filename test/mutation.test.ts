import t from 'tap'
import { checks } from './catalogue-checks.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import { createTestDatabase } from './harness.ts'
import { runMatrix } from './isolation.ts'
import { createWorld } from './isolation-world.ts'
import { mutants } from './mutants.ts'

// rehearsal: the proof of the isolation finds planted holes

/** The checks of the catalogue that find something. */
function failedChecks(database: DatabaseUrls, plant?: string): Promise<string[]> {
  return withClient(database.postgres, async (client) => {
    if (plant) await client.query(plant)
    const failed: string[] = []
    for (const { id, text } of checks) if ((await client.query(text)).rows.length > 0) failed.push(id)
    return failed
  })
}

t.test('without a hole nothing is found', async (t) => {
  const world = await createWorld(t)
  const only = [...new Set(mutants.flatMap((mutant) => mutant.only))]
  const { failures, cases, operations } = await runMatrix(world, { only })
  t.strictSame(failures, [], `${operations} operations, ${cases} cases`)
  t.equal(operations, only.length)
  t.strictSame(await failedChecks(await createTestDatabase(t)), [], `${checks.length} checks of the catalogue`)
  await world.close()
})

t.test('every hole is found', async (t) => {
  let caught = 0
  for (const { title, hole, only, found, checks: expected = [], restore } of mutants) {
    await t.test(title, async (t) => {
      const by: string[] = []
      if (only.length > 0) {
        try {
          const world = await createWorld(t, hole)
          const { failures } = await runMatrix(world, { only, hasty: true })
          t.match(failures[0] ?? 'nothing', found as RegExp)
          by.push(...failures.map((failure) => `the matrix (${failure.replaceAll(/\s+/g, ' ').slice(0, 90)})`))
          await world.close()
        } finally {
          restore?.()
        }
      }
      if (expected.length > 0) {
        const failed = await failedChecks(await createTestDatabase(t), hole.plant)
        for (const id of expected) t.ok(failed.includes(id), `${id} finds it`)
        by.push(...failed.map((id) => `the catalogue (${id})`))
      }
      t.not(by.length, 0, 'it is found')
      if (by.length > 0) caught++
      t.comment(`caught by ${by.join(' and ')}`)
    })
  }
  t.ok(mutants.length >= 15)
  t.equal(caught, mutants.length)
  t.comment(`${caught}/${mutants.length} holes caught`)
})

import t from 'tap'
import { checkEvents } from './event-checks.ts'
import { concernsFiles, concernsWebhooks, proveMatrix } from './isolation.ts'

t.test('no wrong actor gets through any operation but those of files and webhooks', async (t) => {
  const { operations, actors } = await proveMatrix(
    t,
    (operation) => !concernsFiles(operation) && !concernsWebhooks(operation),
    async ({ sql }) => {
      const { misfits, types } = await checkEvents(sql)
      t.strictSame(misfits, [], 'every event that was caused fits the schema of its type')
      t.ok(types.length >= 30, `${types.length} types of events`)
    }
  )
  t.ok(operations >= 30, `${operations} operations`)
  t.ok(actors >= 40, `${actors} actors`)
})

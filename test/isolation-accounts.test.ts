import t from 'tap'
import { checkEvents } from './event-checks.ts'
import { concernsAccounts, concernsFiles, proveMatrix } from './isolation.ts'

t.test('no wrong actor gets through any operation of accounts', async (t) => {
  const { operations, actors } = await proveMatrix(
    t,
    (operation) => concernsAccounts(operation) && !concernsFiles(operation),
    async ({ sql }) => {
      const { misfits, types } = await checkEvents(sql)
      t.strictSame(misfits, [], 'every event that was caused fits the schema of its type')
      t.ok(types.length >= 15, `${types.length} types of events`)
    }
  )
  t.ok(operations >= 30, `${operations} operations`)
  t.ok(actors >= 40, `${actors} actors`)
})

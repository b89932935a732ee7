import t from 'tap'
import { checkEvents } from './event-checks.ts'
import { concernsAccounts, concernsFiles, concernsWebhooks, proveMatrix } from './isolation.ts'

// The matrix is divided into several files, because each check reads what the agencies have logged until then.
t.test('no wrong actor gets through any operation but those of accounts, files and webhooks', async (t) => {
  const { operations, actors } = await proveMatrix(
    t,
    (operation) => ![concernsAccounts, concernsFiles, concernsWebhooks].some((concerns) => concerns(operation)),
    async ({ sql }) => {
      const { misfits, types } = await checkEvents(sql)
      t.strictSame(misfits, [], 'every event that was caused fits the schema of its type')
      t.ok(types.length >= 20, `${types.length} types of events`)
    }
  )
  t.ok(operations >= 30, `${operations} operations`)
  t.ok(actors >= 40, `${actors} actors`)
})

import t from 'tap'
import { concernsWebhooks, proveMatrix } from './isolation.ts'

t.test('no wrong actor gets through any operation of webhooks', async (t) => {
  const { operations } = await proveMatrix(t, concernsWebhooks)
  t.equal(operations, 11)
})

import t from 'tap'
import { concernsFiles, proveMatrix } from './isolation.ts'

t.test('no wrong actor gets through any operation but those of files', async (t) => {
  const { operations, actors } = await proveMatrix(t, (operation) => !concernsFiles(operation))
  t.ok(operations >= 30, `${operations} operations`)
  t.ok(actors >= 40, `${actors} actors`)
})

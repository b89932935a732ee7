import t from 'tap'
import { concernsFiles, proveMatrix } from './isolation.ts'

// apart from the others, so that the two run at once
t.test('no wrong actor gets through any operation of files', async (t) => {
  const { operations, actors } = await proveMatrix(t, concernsFiles)
  t.ok(operations >= 20, `${operations} operations`)
  t.ok(actors >= 40, `${actors} actors`)
})

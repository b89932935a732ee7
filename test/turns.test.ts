import t from 'tap'
import { createRoundRobinQueue } from '../src/limits/round-robin-queue.ts'

const drain = (turns: ReturnType<typeof createRoundRobinQueue<string>>) => {
  const taken: string[] = []
  for (let item = turns.take(); item !== undefined; item = turns.take()) taken.push(item)
  return taken
}

t.test('each party has its turn, and its own in their order', async (t) => {
  const turns = createRoundRobinQueue<string>()
  for (const item of ['a1', 'a2', 'a3', 'b1', 'c1', 'c2']) turns.add(item, item.slice(0, 1))
  t.equal(turns.size(), 6)
  t.strictSame([turns.take(), turns.take()], ['a1', 'b1'])
  turns.add('b2', 'b')
  turns.add('d1', 'd')
  t.strictSame(drain(turns), ['c1', 'a2', 'b2', 'd1', 'c2', 'a3'])
  t.equal(turns.size(), 0)
  t.equal(turns.take(), undefined)
  t.equal(turns.size(), 0)
})

t.test('the latest of the party with the most is taken back, for one that has less', async (t) => {
  const turns = createRoundRobinQueue<string>()
  for (const item of ['a1', 'a2', 'b1', 'b2', 'b3']) turns.add(item, item.slice(0, 1))
  t.equal(turns.evictFor('b'), undefined, 'not for the party itself')
  t.equal(turns.evictFor('a'), undefined, 'nor for one that would have as many')
  t.equal(turns.evictFor('c'), 'b3')
  t.equal(turns.evictFor('c'), 'a2')
  t.equal(turns.evictFor('c'), 'b2')
  t.equal(turns.evictFor('c'), undefined)
  t.equal(turns.size(), 2)
  t.strictSame(drain(turns), ['a1', 'b1'])
})

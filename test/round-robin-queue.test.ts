import t from 'tap'
import { createRoundRobinQueue } from '../src/limits/round-robin-queue.ts'

const drain = (queue: ReturnType<typeof createRoundRobinQueue<string>>) => {
  const taken: string[] = []
  for (let item = queue.take(); item !== undefined; item = queue.take()) taken.push(item)
  return taken
}

t.test('each party has its turn, and its own in their order', async (t) => {
  const queue = createRoundRobinQueue<string>()
  for (const item of ['a1', 'a2', 'a3', 'b1', 'c1', 'c2']) queue.add(item, item.slice(0, 1))
  t.equal(queue.size(), 6)
  t.strictSame([queue.take(), queue.take()], ['a1', 'b1'])
  queue.add('b2', 'b')
  queue.add('d1', 'd')
  t.strictSame(drain(queue), ['c1', 'a2', 'b2', 'd1', 'c2', 'a3'])
  t.equal(queue.size(), 0)
  t.equal(queue.take(), undefined)
  t.equal(queue.size(), 0)
})

t.test('the latest of the party with the most is taken back, for one that has less', async (t) => {
  const queue = createRoundRobinQueue<string>()
  for (const item of ['a1', 'a2', 'b1', 'b2', 'b3']) queue.add(item, item.slice(0, 1))
  t.equal(queue.evictFor('b'), undefined, 'not for the party itself')
  t.equal(queue.evictFor('a'), undefined, 'nor for one that would have as many')
  t.equal(queue.evictFor('c'), 'b3')
  t.equal(queue.evictFor('c'), 'a2')
  t.equal(queue.evictFor('c'), 'b2')
  t.equal(queue.evictFor('c'), undefined)
  t.equal(queue.size(), 2)
  t.strictSame(drain(queue), ['a1', 'b1'])
})

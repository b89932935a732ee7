import { strict as assert } from 'node:assert'
import { sql } from 'kysely'
import type * as Memory from '../db/gate/memory.ts'
import { statement } from '../db/gate/statement.ts'

/*
 * What the memory of reads must do, as scenarios that a mutant of it must fail.
 */

type Module = typeof Memory
type Row = { text: string; tag: string }

const nil = '00000000-0000-0000-0000-000000000000'
const remembered = { tag: ({ tag }: Row) => tag }
const build = (_: unknown, $: { tenant_id: string; page: number }) =>
  sql<Row>`select text, tag from users where id = ${$.tenant_id} and version = ${$.page}`
const person = statement('remembered_person', build, {
  remembered: { ...remembered, reads: ['users'] }
})
const house = statement('remembered_house', build, {
  remembered: { ...remembered, reads: ['tenants', 'storage_usage'] }
})

/** A memory whose clocks stand still, and whose feed was read just now. */
function createBench(module: Module) {
  const clock = { now: 5000, wall: 1_000_000 }
  const ages: number[] = []
  const memory = module.createReadMemory({
    now: () => clock.now,
    wall: () => clock.wall,
    onHit: (age) => ages.push(age)
  })
  const feedRead = () => memory.feedRead({ ...clock })
  feedRead()
  const asked = (tenant = 'a', user = 'u', page = 1, of = person) => ({
    statement: of,
    scope: { tenant_id: tenant, user_id: user },
    values: { tenant_id: tenant, page }
  })
  type Asked = ReturnType<typeof asked>
  return {
    memory,
    clock,
    ages,
    feedRead,
    asked,
    find: (question: Asked, known?: string) => memory.find(question, known)?.[0]?.text,
    fill: (question: Asked, text: string) => memory.fill(question, async () => [{ text, tag: `"${text}"` }]),
    /** Asks, and answers when the returned function is called. */
    ask(question: Asked, text: string) {
      const { promise, resolve } = Promise.withResolvers<Row[]>()
      const filled = memory.fill(question, () => promise)
      return () => {
        resolve([{ text, tag: `"${text}"` }])
        return filled
      }
    }
  }
}

export const scenarios: Record<string, (module: Module) => Promise<void>> = {
  async 'an answer is for one agency, one person, one statement and one set of values'(module) {
    const { fill, find, asked } = createBench(module)
    await fill(asked(), 'mine')
    assert.equal(find(asked()), 'mine')
    // as if the statement had no value of the agency
    assert.equal(find({ ...asked('b'), values: { tenant_id: 'a', page: 1 } }), undefined)
    assert.equal(find({ ...asked('b'), values: { tenant_id: 'b', page: 1 } }), undefined)
    assert.equal(find(asked('a', 'v')), undefined)
    assert.equal(find(asked('a', 'u', 2)), undefined)
    assert.equal(find(asked('a', 'u', 1, house)), undefined)
    assert.equal(find({ ...asked(), values: { tenant_id: 'b', page: 1 } }), undefined)
  },
  async 'a feed that is older than a second makes memory silent, by either clock'(module) {
    const { fill, find, asked, clock, feedRead, ages } = createBench(module)
    await fill(asked(), 'old')
    clock.now += 999
    clock.wall += 999
    assert.equal(find(asked()), 'old')
    assert.deepEqual(ages, [999])
    clock.now += 1
    assert.equal(find(asked()), undefined, 'halted')
    clock.now -= 1
    clock.wall += 1
    assert.equal(find(asked()), undefined, 'asleep, or set forward')
    clock.wall -= 5000
    assert.equal(find(asked()), undefined, 'set back')
    feedRead()
    assert.equal(find(asked()), 'old')
  },
  async 'nothing is remembered while the feed is old'(module) {
    const { fill, find, asked, clock, feedRead } = createBench(module)
    clock.now += 1000
    await fill(asked(), 'unknown')
    feedRead()
    assert.equal(find(asked()), undefined)
  },
  async 'another tag may be a newer one'(module) {
    const { fill, find, asked } = createBench(module)
    await fill(asked(), 'one')
    assert.equal(find(asked(), '"one"'), 'one')
    assert.equal(find(asked(), 'W/"one"'), 'one')
    for (const known of ['"two"', '"one", "two"', '*', '']) assert.equal(find(asked(), known), undefined, known)
  },
  async 'an answer to a question from before a change is not remembered'(module) {
    const { ask, find, asked, memory } = createBench(module)
    const changes = [
      { kind: 'user', tenant_id: nil, subject: 'u' },
      { kind: 'user', tenant_id: 'a', subject: 'u' },
      { kind: 'agency', tenant_id: 'a', subject: 'a' },
      { kind: 'agency', tenant_id: nil, subject: nil },
      { kind: 'usage', tenant_id: 'a', subject: 'a' },
      { kind: 'swept', tenant_id: nil, subject: nil }
    ] as const
    for (const change of changes) {
      const answer = ask(asked('a', 'u', 1, house), 'before')
      memory.forget(change)
      await answer()
      assert.equal(find(asked('a', 'u', 1, house)), undefined, change.kind)
    }
    const answer = ask(asked(), 'before')
    memory.forgetAll()
    await answer()
    assert.equal(find(asked()), undefined, 'everything')
    const other = ask(asked(), 'mine')
    memory.forget({ kind: 'user', tenant_id: nil, subject: 'v' })
    await other()
    assert.equal(find(asked()), 'mine', 'a change of somebody else')
  },
  async 'an answer to an earlier question does not replace one to a later question'(module) {
    const { ask, find, asked } = createBench(module)
    const earlier = ask(asked(), 'earlier')
    const later = ask(asked(), 'later')
    await later()
    await earlier()
    assert.equal(find(asked()), 'later')
  },
  async 'a change makes be forgotten what it can show in, and nothing else'(module) {
    const cases = [
      [{ kind: 'user', tenant_id: nil, subject: 'u' }, ['a v', 'a v house']],
      [{ kind: 'user', tenant_id: 'b', subject: 'u' }, ['a u', 'a v', 'a u house', 'a v house']],
      [{ kind: 'agency', tenant_id: 'a', subject: 'a' }, ['b u']],
      [{ kind: 'usage', tenant_id: 'a', subject: 'a' }, ['a u', 'a v', 'b u']],
      [{ kind: 'agency', tenant_id: nil, subject: nil }, []],
      [{ kind: 'swept', tenant_id: nil, subject: nil }, []]
    ] as const
    for (const [change, left] of cases) {
      const { fill, find, asked, memory } = createBench(module)
      const questions = {
        'a u': asked('a', 'u'),
        'a v': asked('a', 'v'),
        'b u': asked('b', 'u'),
        'a u house': asked('a', 'u', 1, house),
        'a v house': asked('a', 'v', 1, house)
      }
      for (const [name, question] of Object.entries(questions)) await fill(question, name)
      memory.forget(change)
      const found = Object.entries(questions).filter(([name, question]) => find(question) === name)
      assert.deepEqual(found.map(([name]) => name).sort(), [...left].sort(), JSON.stringify(change))
    }
  },
  async 'what is forgotten leaves nothing behind'(module) {
    const { fill, find, asked, memory } = createBench(module)
    await fill(asked(), 'one')
    await assert.rejects(memory.fill(asked('a', 'w'), () => Promise.reject(new Error('away'))))
    await memory.fill(asked('a', 'x'), async () => [])
    assert.equal(find(asked('a', 'x')), undefined, 'no row is not an answer')
    assert.deepEqual([memory.stats().entries, memory.stats().listed], [1, 2])
    memory.forgetAll()
    assert.deepEqual([memory.stats().entries, memory.stats().bytes, memory.stats().listed], [0, 0, 0])
    await fill(asked(), 'two')
    memory.forget({ kind: 'user', tenant_id: nil, subject: 'u' })
    assert.deepEqual([memory.stats().entries, memory.stats().listed], [0, 0])
  },
  async 'entries are bounded by number, and the least recently used goes'(module) {
    const { fill, find, asked, memory } = createBench(module)
    await fill(asked('first', 'first'), 'first')
    await fill(asked('second', 'second'), 'second')
    for (let n = 2; n < module.maxEntries; n++) await fill(asked(`t${n % 100}`, `u${n % 3000}`, n), 'x')
    assert.equal(find(asked('first', 'first')), 'first')
    await fill(asked('new', 'new'), 'new')
    assert.equal(memory.stats().entries, module.maxEntries)
    assert.equal(find(asked('first', 'first')), 'first')
    assert.equal(find(asked('second', 'second')), undefined)
  },
  async 'and by bytes'(module) {
    const { fill, find, asked, memory } = createBench(module)
    const large = 'x'.repeat(1024 * 1024)
    for (let n = 0; n < 20; n++) await fill(asked(`t${n}`, `u${n}`), large)
    assert.ok(memory.stats().bytes <= module.maxBytes)
    assert.ok(memory.stats().entries > 5)
    await fill(asked('huge', 'huge'), 'x'.repeat(module.maxBytes + 1))
    assert.equal(find(asked('huge', 'huge')), undefined)
    memory.forgetAll()
    assert.equal(memory.stats().listed, 0)
  },
  async 'so is what one agency and one person take'(module) {
    const { fill, find, asked, memory } = createBench(module)
    await fill(asked('b', 'v'), 'beside')
    for (let n = 0; n <= module.maxPerUser; n++) await fill(asked(`t${n}`, 'u'), 'x')
    assert.equal(memory.stats().entries, module.maxPerUser + 1)
    assert.equal(find(asked('t0', 'u')), undefined)
    for (let n = 0; n <= module.maxPerTenant; n++) await fill(asked('a', `p${n}`), 'x')
    assert.equal(memory.stats().entries, module.maxPerUser + 1 + module.maxPerTenant)
    assert.equal(find(asked('b', 'v')), 'beside')
  }
}

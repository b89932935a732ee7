import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { sql } from 'kysely'
import t from 'tap'
import * as memory from '../db/gate/memory.ts'
import { statement } from '../db/gate/statement.ts'
import { root } from './harness.ts'
import { scenarios } from './memory-scenarios.ts'

/*
 * The memory of reads by itself: what it must do, and mutants of it that must be found.
 */

for (const [title, run] of Object.entries(scenarios)) {
  t.test(title, async () => run(memory))
}

const source = readFileSync(join(root, 'db/gate/memory.ts'), 'utf8')

const claims = `\${scope.tenant_id} \${scope.user_id}`
/** Each takes one condition away. */
const mutants: Record<string, [find: string, replace: string]> = {
  'the agency is not in the key': [claims, claims.slice(19)],
  'the person is not in the key': [claims, claims.slice(0, 18)],
  'the statement is not in the key': [`\`\${statement.name} `, '`'],
  'values are not in the key': ['if (value !== (scope as Record<string, unknown>)[name])', 'if (false)'],
  'a feed may be of any age': ['elapsed < freshMs && ', ''],
  'a feed may be a second old': ['elapsed < freshMs && ', 'elapsed <= freshMs && '],
  'the clock on the wall is not asked': ['Math.max(elapsed, elapsedByWall)', 'elapsed'],
  'the monotonic clock is not asked': ['Math.max(elapsed, elapsedByWall)', 'elapsedByWall'],
  'a clock that was set back is believed': ['elapsedByWall < 0 ?', 'false ?'],
  'any tag will do': ['known === undefined || known === entry.tag', 'true || known === entry.tag'],
  'weak tags are not known': [` || known === \`W/\${entry.tag}\``, ''],
  'any answer is remembered': ['row !== undefined && isWanted(entry)', 'row !== undefined'],
  'an answer that is late is remembered': ['(byUser.get(entry.user_id)?.has(entry) ?? false) && ', ''],
  'an earlier question wins': [' && (kept.peek(entry.key)?.asked ?? 0) < entry.asked', ''],
  'nothing is an answer': ['row !== undefined && isWanted(entry)', 'isWanted(entry)'],
  'an old feed lets answers be remembered': [' || age() >= freshMs) return ask()', ') return ask()'],
  'a change of a person is missed': ["kind === 'user' ? byUser.get(subject) : ", ''],
  'a change of a person in one agency counts in all': [
    'tenant_id !== nilUuid && entry.tenant_id !== tenant_id',
    'false'
  ],
  'a change of usage counts for all': ["if (kind === 'usage' && !entry.showsUsage) continue", ''],
  'a change of usage counts for none': [
    "if (kind === 'usage' && !entry.showsUsage) continue",
    "if (kind === 'usage') continue"
  ],
  'changes that were swept are not missed': ["kind === 'swept' || ", ''],
  'a change of everything is one of nothing': ["(kind === 'agency' && tenant_id === nilUuid)", 'false'],
  'the number has no bound': ['max: maxEntries,', ''],
  'the bytes have no bound': ['maxSize: maxBytes,', 'maxSize: 1e12,'],
  'an agency has no bound': ['limit(byTenant.get(entry.tenant_id), maxPerTenant)', ''],
  'a person has no bound': ['limit(byUser.get(entry.user_id), maxPerUser)', ''],
  'what failed stays in the lists': ['if (kept.peek(entry.key) !== entry) unlist(entry)', '']
}

t.test('every mutant is found', async (t) => {
  const folder = t.testdir()
  const absolute = source.replaceAll(/from '(\.[^']+)'/g, (_, path) => {
    return `from '${pathToFileURL(join(root, 'db/gate', path)).href}'`
  })
  for (const [index, [title, [find, replace]]] of Object.entries(mutants).entries()) {
    const mutated = absolute.replace(find, () => replace)
    t.not(mutated, absolute, `${title}: the condition is there`)
    const file = join(folder, `mutant-${index}.ts`)
    writeFileSync(file, mutated)
    const mutant = await import(pathToFileURL(file).href)
    const failed: string[] = []
    for (const [scenario, run] of Object.entries(scenarios)) {
      await run(mutant).catch(() => failed.push(scenario))
      if (failed.length > 0) break
    }
    t.not(failed.length, 0, `${title}: ${failed[0]}`)
  }
})

t.test('what writes, or may be asked elsewhere, can not be remembered', async (t) => {
  const build = () => sql`select 1`
  const remembered = { reads: ['users'], tag: () => '""' } as const
  t.throws(() => statement('remembered_write', build, { remembered, writes: true }), /can't be remembered/)
  t.throws(() => statement('remembered_elsewhere', build, { remembered, replica: true }), /can't be remembered/)
})

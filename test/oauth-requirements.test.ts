import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { asvs10 } from './asvs-requirements.ts'
import { readText, root } from './harness.ts'
import { type Requirement, rfc9700 } from './oauth-requirements.ts'
import { pagePath, renderPage } from './oauth-requirements-page.ts'

/** How many points each section of the chapter has. */
const asvsPoints = { '10.1': 2, '10.2': 3, '10.3': 5, '10.4': 16, '10.5': 5, '10.6': 2, '10.7': 3 }
/** The sections that recommend something. */
const rfcSections = [
  ...['2.1', '2.1.1', '2.1.2', '2.2.1', '2.2.2', '2.3', '2.4', '2.5', '2.6'],
  ...['4.1', '4.2', '4.3.1', '4.3.2', '4.4', '4.5', '4.6', '4.7', '4.8', '4.9', '4.10'],
  ...['4.11.1', '4.11.2', '4.12', '4.13', '4.14', '4.15', '4.16', '4.17']
]

const bySection = (one: string, other: string) => one.localeCompare(other, 'en', { numeric: true })

async function check(t: Test, requirements: readonly Requirement[], expected: string[]): Promise<void> {
  const ids = requirements.map(({ id }) => id)
  t.equal(new Set(ids).size, ids.length, 'no point is there twice')
  t.strictSame(ids, ids.toSorted(bySection), 'they are in order')
  t.strictSame([...new Set(ids.map((id) => id.split(' ')[0]))], expected.toSorted(bySection), 'none is missing')
  for (const requirement of requirements) {
    t.ok(requirement.demands.length > 20 && requirement.demands.endsWith('.'), requirement.id)
    if (!('shown' in requirement)) {
      t.ok(requirement.why.length > 20, `${requirement.id} has a reason`)
      continue
    }
    t.not(requirement.shown.length, 0, `${requirement.id} is shown`)
    for (const [file, title] of requirement.shown) {
      const source = existsSync(join(root, file)) ? readText(file) : ''
      const quoted = [`'${title}'`, `"${title}"`].some((each) => source.includes(each))
      t.ok(quoted, `${requirement.id}: ${file} has "${title}"`)
    }
  }
}

t.test('every point of chapter 10 of ASVS has a test, or a reason', (t) => {
  const ids = Object.entries(asvsPoints).flatMap(([section, count]) =>
    Array.from({ length: count }, (_, index) => `${section}.${index + 1}`)
  )
  return check(t, asvs10, ids)
})

t.test('every section of RFC 9700 has a test, or a reason', (t) => check(t, rfc9700, rfcSections))

t.test('the page says the same', async (t) => {
  t.equal(readText(pagePath), renderPage())
})

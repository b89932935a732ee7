import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { definerFunctions } from '../db/catalogue/reviewed.ts'
import { maxBytes, maxEntries, maxPerTenant, maxPerUser } from '../db/gate/memory.ts'
import { cachedTokens } from '../plugins/auth/bearer.ts'
import { maxPerOwner, maxUploads } from '../plugins/files/objects.ts'
import { pipelineCount, replicaPool } from '../plugins/infrastructure/database.ts'
import { maxUnderWay } from '../plugins/limits/concurrency.ts'
import { batch } from '../plugins/maintenance/housekeeping.ts'
import { maxTenants } from '../plugins/tenancy/tenants.ts'
import { parameters } from '../src/auth/passwords.ts'
import { settings } from '../src/config/settings.ts'
import { partBytes } from '../src/files/store/object-writer.ts'
import { maxPrefetchShare } from '../src/limits/leased-quotas.ts'
import { allRows, createTestDatabase, readText, root } from './harness.ts'

/*
 * Everything that docs/scaling.md names exists, and its plan covers the whole schema.
 */

const page = readText('docs/scaling.md')

/** The names in the first column of the table under a heading. */
function firstColumn(heading: string): string[] {
  const section = page.split(/^##+ /m).find((each) => each.startsWith(`${heading}\n`))
  if (section === undefined) throw new Error(`the page has no "${heading}"`)
  const rows = section.split('\n').filter((line) => line.startsWith('|'))
  return rows
    .slice(2)
    .flatMap((row) => [...(row.split('|')[1] ?? '').matchAll(/`(\w+)`/g)].map(([, name = '']) => name))
}

t.test('the page is short', async (t) => {
  t.ok(page.split('\n').length <= 250)
})

t.test('every table has one place in the plan for Citus', async (t) => {
  const database = await createTestDatabase(t)
  const tables: { name: string }[] = await allRows(
    database,
    `select relname as name from pg_class
     where relkind in ('r', 'p', 'f') and not relispartition and relnamespace = 'public'::regnamespace`
  )
  t.strictSame(firstColumn('Which table becomes what').sort(), tables.map(({ name }) => name).sort())
})

t.test('the tables that are distributed are those that have a tenant in every key', async (t) => {
  const database = await createTestDatabase(t)
  const keys: { name: string; fits: boolean }[] = await allRows(
    database,
    `select c.relname as name, bool_and(a.attname = 'tenant_id') as fits
     from pg_class c join pg_index i on i.indrelid = c.oid and i.indisunique
     join pg_attribute a on a.attrelid = c.oid and a.attnum = i.indkey[0]
     where c.relkind in ('r', 'p') and not c.relispartition and c.relnamespace = 'public'::regnamespace group by c.relname`
  )
  const fits = new Map(keys.map(({ name, fits }) => [name, fits]))
  const rows = page.split('\n').filter((line) => /^\| `.*\| (distributed|reference) \|/.test(line))
  t.ok(rows.length > 0)
  for (const row of rows) {
    for (const [, name = ''] of (row.split('|')[1] ?? '').matchAll(/`(\w+)`/g)) {
      t.equal(fits.get(name), row.includes('| distributed |'), name)
    }
  }
})

t.test('every function with rights of its own has one place in the plan', async (t) => {
  // one name may have several signatures
  const names = new Set(definerFunctions.map((signature) => signature.replace(/\(.*/, '')))
  t.strictSame(firstColumn('What each directory function becomes').sort(), [...names].sort())
})

t.test('every setting that is named exists', async (t) => {
  const ours = new Set(Object.values(settings).map(({ name }) => name))
  const traefik = readText('traefik.dynamic.yml')
  const named = new Set([...page.matchAll(/\b[A-Z][A-Z\d]*_[A-Z\d_]+\b/g)].map(([name]) => name))
  t.ok(named.has('WEB_CONCURRENCY'))
  for (const name of named) t.ok(ours.has(name) || traefik.includes(`env "${name}"`), name)
})

t.test('every command and every page that is named exists', async (t) => {
  const scripts = Object.keys(JSON.parse(readText('package.json')).scripts)
  for (const [, script = ''] of page.matchAll(/npm run (\w+)/g)) t.ok(scripts.includes(script), script)
  const scenarios = readdirSync(join(root, 'bench', 'scenarios')).map((file) => readText(`bench/scenarios/${file}`))
  const named = scenarios.flatMap((text) => [...text.matchAll(/^ {2}name: '([\w-]+)'/gm)].map(([, name]) => name))
  for (const [, name] of page.matchAll(/--only ([\w-]+)/g)) t.ok(named.includes(name), `--only ${name}`)
  for (const [, path = ''] of page.matchAll(/`(test\/[\w.-]+|db\/[\w.-]+)`/g)) t.ok(existsSync(join(root, path)), path)
  for (const [, path = ''] of page.matchAll(/\]\((\S+\.md)\)/g)) t.ok(existsSync(join(root, 'docs', path)), path)
  const metrics = ['plugins', 'src'].flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts'))
      .map((name) => readText(`${folder}/${name}`))
  )
  for (const [name] of page.matchAll(/\baggios_\w+_\w+|\baggios_revocations\b/g)) {
    t.ok(
      metrics.some((text) => text.includes(`'${name}'`)),
      name
    )
  }
})

/** Sentences of the page, with # for a number, and the number in the sources. */
const numbers: [says: string, value: number][] = [
  ['Each process holds # pipelined connections', pipelineCount],
  ['processes x #. The primary', replicaPool],
  ['With the defaults a process takes #', Number(settings.databasePool.fallback) + pipelineCount],
  ['Each process has # upload places', maxUploads],
  ['upload places, # for one agency', maxPerOwner],
  ['three buffers of # MiB', partBytes / 2 ** 20],
  ['# a process | 503 `overloaded` for that agency | processes', maxUnderWay],
  ['batches of a #th', 1 / maxPrefetchShare],
  ['| #; 20,000 a process |', maxTenants],
  ['150,000; # a process', cachedTokens],
  ['| # and 16 MiB a process; 5,000', maxEntries],
  ['20,000 and # MiB a process', maxBytes / 2 ** 20],
  ['16 MiB a process; # of an agency', maxPerTenant],
  ['of an agency, # of a person', maxPerUser],
  ['| # revocations, sessions', batch],
  ['hashes at once x # MiB', parameters.memoryCost / 1024]
]

t.test('every number of a constant is that of the constant', async (t) => {
  const text = page.replaceAll(/\s+/g, ' ')
  for (const [says, value] of numbers) t.ok(text.includes(says.replace('#', value.toLocaleString('en'))), says)
})

/** Measured figures that one page states and another repeats. */
const measured: [says: string, stands: RegExp][] = [
  ['has # µs and', /; (\d+) µs a request/],
  ['µs and # µs for', /and (\d+) µs in PostgreSQL/],
  ['sign-in`; # ms with `@node-rs/argon2`', /\((\d+) ms a hash/],
  ['# ms with `argon2`, which', /instead of (\d+)\)/]
]

t.test('every number that was measured is that of docs/performance.md', async (t) => {
  const text = page.replaceAll(/\s+/g, ' ')
  for (const [says, stands] of measured) {
    const [, value = ''] = stands.exec(readText('docs/performance.md')) ?? []
    t.match(value, /^\d+$/, says)
    t.ok(text.includes(says.replace('#', value)), says)
  }
})

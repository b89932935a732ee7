import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import posix from 'node:path/posix'
import t from 'tap'
import { root } from './harness.ts'
import { importsOf } from './imports.ts'

/*
 * Which folder may import which. Each rule is a function of a path and a text, so that violations can be planted here.
 */

type Zone = 'wiring' | 'pure' | 'plugin' | 'route' | 'migration' | 'db' | 'test' | 'elsewhere'

function zoneOf(file: string): Zone {
  if (/^src\/(?:app\.ts$|(?:server|main)\.ts$|cli\/|processes\/)/.test(file)) return 'wiring'
  if (file.startsWith('src/')) return 'pure'
  if (file.startsWith('plugins/')) return 'plugin'
  if (file.startsWith('routes/')) return 'route'
  if (file.startsWith('db/migrations/')) return 'migration'
  if (file.startsWith('db/')) return 'db'
  return file.startsWith('test/') ? 'test' : 'elsewhere'
}

const isRelative = (specifier: string) => specifier.startsWith('.')
const isFastify = (specifier: string) => /^(?:fastify(?:-|\/|$)|@fastify\/)/.test(specifier)
const folderOf = (file: string) => posix.dirname(file)

/** Whether the table of the layout lets `file` import `target`, both being paths from the root. */
function mayReach(file: string, target: string, typesOnly: boolean): boolean {
  const to = zoneOf(target)
  switch (zoneOf(file)) {
    case 'wiring':
    case 'test':
      return true
    case 'pure':
      return to === 'pure'
    case 'db':
      return to === 'pure' || to === 'db'
    case 'plugin':
      return to === 'pure' || to === 'db' || (to === 'plugin' && typesOnly)
    case 'route': {
      const own = folderOf(file) !== 'routes' && target.startsWith(`${folderOf(file)}/`)
      return to === 'pure' || to === 'db' || own || target === 'routes/schemas.ts'
    }
    default:
      return false
  }
}

function withoutSuffix(file: string, specifier: string): string[] {
  return isRelative(specifier) && !specifier.endsWith('.ts') ? [`${file} imports ${specifier} without .ts`] : []
}

function importFaults(file: string, source: string): string[] {
  const zone = zoneOf(file)
  if (zone === 'test') return importsOf(source).flatMap(({ specifier }) => withoutSuffix(file, specifier))
  return importsOf(source).flatMap(({ specifier, typesOnly }) => {
    // the embedded PostgreSQL of the platform is chosen at run time
    if (specifier === '') return file === 'db/embedded.ts' ? [] : [`${file} imports what nobody can read`]
    const faults: string[] = []
    if (zone === 'migration' && !/^kysely(?:\/|$)/.test(specifier)) faults.push(`${file} needs ${specifier}`)
    if (isFastify(specifier) && (zone === 'db' || zone === 'pure')) faults.push(`${file} knows Fastify: ${specifier}`)
    if (specifier === 'fastify-plugin' && zone === 'route') faults.push(`${file} is not encapsulated`)
    if (isRelative(specifier)) {
      faults.push(...withoutSuffix(file, specifier))
      const target = posix.join(folderOf(file), specifier)
      if (!mayReach(file, target, typesOnly)) faults.push(`${file} must not import ${target}`)
    }
    return faults
  })
}

/** npm also installs dependencies of dependencies. Only a package that package.json names is certain to stay. */
function undeclaredPackages(file: string, source: string, declared: ReadonlySet<string>): string[] {
  return importsOf(source).flatMap(({ specifier }) => {
    if (specifier === '' || isRelative(specifier) || specifier.startsWith('node:')) return []
    const name = specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/')
    return declared.has(name) ? [] : [`${file} imports ${name}, which package.json does not name`]
  })
}

const unfinished = new RegExp(`\\b(?:${['TO', 'DO'].join('')}|FIX${'ME'}|HA${'CK'})\\b`)

function wordFaults(file: string, source: string): string[] {
  const faults: string[] = []
  if (/(?<![./\w'"-])console\s*[.[]/.test(source)) faults.push(`${file} writes to the console`)
  if (unfinished.test(source)) faults.push(`${file} is not finished`)
  return faults
}

/** A plugin must be wrapped by fastify-plugin, and have the name of its file. */
function pluginFaults(file: string, source: string): string[] {
  if (zoneOf(file) !== 'plugin') return []
  const faults: string[] = []
  if (!/^export default fp\b/m.test(source)) faults.push(`${file} is not wrapped by fastify-plugin`)
  if (!source.includes(`name: '${basename(file, '.ts')}'`)) faults.push(`${file} is not named like its file`)
  return faults
}

function sourcesIn(...folders: string[]): [file: string, source: string][] {
  return folders.flatMap((folder) =>
    readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts'))
      .map((name): [string, string] => {
        const file = posix.join(folder, name.replaceAll('\\', '/'))
        return [file, readFileSync(join(root, file), 'utf8')]
      })
  )
}

const product = sourcesIn('src', 'plugins', 'routes', 'db')
// this file contains planted violations
const everything = [...product, ...sourcesIn('test').filter(([file]) => file !== 'test/architecture.test.ts')]

t.test('the sources keep to the table of the layout', async (t) => {
  for (const folder of ['src/', 'plugins/', 'routes/', 'db/gate/', 'db/queries/', 'db/migrations/']) {
    t.ok(
      product.some(([file]) => file.startsWith(folder)),
      `there is something in ${folder}`
    )
  }
  t.ok(product.flatMap(([, source]) => importsOf(source)).length > product.length, 'imports are found')
  t.strictSame(
    everything.flatMap(([file, source]) => importFaults(file, source)),
    []
  )
})

t.test('every package that is imported is named in package.json', async (t) => {
  const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const runtime = new Set(Object.keys({ ...manifest.dependencies, ...manifest.optionalDependencies }))
  t.strictSame(
    product.flatMap(([file, source]) => undeclaredPackages(file, source, runtime)),
    []
  )
})

t.test('nothing writes to the console, and nothing waits to be done', async (t) => {
  t.strictSame(
    everything.flatMap(([file, source]) => wordFaults(file, source)),
    []
  )
})

t.test('every plugin is wrapped and named', async (t) => {
  t.strictSame(
    product.flatMap(([file, source]) => pluginFaults(file, source)),
    []
  )
})

t.test('every relative import leads to a file', async (t) => {
  const known = new Set(everything.map(([file]) => file))
  const missing = everything.flatMap(([file, source]) =>
    importsOf(source)
      .filter(({ specifier }) => isRelative(specifier))
      .map(({ specifier }) => posix.join(folderOf(file), specifier))
      .filter((target) => !known.has(target))
      .map((target) => `${file} imports ${target}`)
  )
  t.strictSame(missing, [])
})

t.test('a planted import is found, however it is spelled', async (t) => {
  const spellings = [
    "import app from '../src/app.ts'",
    "import { a, type B } from '../src/app.ts'",
    "import {\n  a,\n  b as c\n} from '../src/app.ts'",
    "import * as app from '../src/app.ts'",
    "import '../src/app.ts'",
    "export { a } from '../src/app.ts'",
    "export * from '../src/app.ts'",
    "  const { a } = await import('../src/app.ts')",
    'const a = await import("../src/app.ts")',
    "const a = require('../src/app.ts')",
    "let x: import('../src/app.ts').App"
  ]
  for (const source of spellings) {
    t.strictSame(
      importsOf(source).map(({ specifier, typesOnly }) => [specifier, typesOnly]),
      [['../src/app.ts', false]],
      source
    )
  }
  t.match(importsOf("import type { A } from './a.ts'\nexport type { B } from './b.ts'"), [
    { specifier: './a.ts', typesOnly: true },
    { specifier: './b.ts', typesOnly: true }
  ])
  // an import without `type` before the braces runs the module, also if all its names are types
  t.match(importsOf("import { type A } from './a.ts'"), [{ typesOnly: false }])
  t.strictSame(importsOf("// import a from 'a'\n/* import b from 'b' */\nexport const from = 'c'\nconst d = 'd'"), [])
})

t.test('each row of the table refuses what is not on it', async (t) => {
  const refused: [file: string, source: string][] = [
    ['src/keys.ts', "import { buildApp } from '../app.ts'"],
    ['src/keys.ts', "import type { Gate } from '../../db/gate/gate.ts'"],
    ['src/keys.ts', "import auth from '../../plugins/auth/authentication.ts'"],
    ['src/keys.ts', "import { User } from '../../routes/schemas.ts'"],
    ['src/keys.ts', "import type { FastifyRequest } from 'fastify'"],
    ['src/files/store/s3.ts', "import { start } from '../../processes/worker.ts'"],
    ['db/gate/gate.ts', "import type { FastifyInstance } from 'fastify'"],
    ['db/gate/gate.ts', "import fp from 'fastify-plugin'"],
    ['db/gate/gate.ts', "import jwt from '@fastify/jwt'"],
    ['db/gate/gate.ts', "import { buildApp } from '../../src/app.ts'"],
    ['db/gate/gate.ts', "import type { AccessClaims } from '../../plugins/auth/authentication.ts'"],
    ['db/gate/gate.ts', "import { User } from '../../routes/schemas.ts'"],
    ['plugins/http/cors.ts', "import tenants from '../tenancy/tenants.ts'"],
    ['plugins/http/cors.ts', "import { type Tenants } from '../tenancy/tenants.ts'"],
    ['plugins/http/cors.ts', "import { Role } from '../../routes/schemas.ts'"],
    ['plugins/http/cors.ts', "import type { buildApp } from '../../src/app.ts'"],
    ['routes/users/index.ts', "import { User } from '../tenant/schemas.ts'"],
    ['routes/users/index.ts', "import type { AccessClaims } from '../../plugins/auth/authentication.ts'"],
    ['routes/users/index.ts', "import fp from 'fastify-plugin'"],
    ['routes/users/index.ts', "import { start } from '../../src/server.ts'"],
    ['routes/users/index.ts', "import { up } from '../../db/migrations/0001_core.ts'"],
    ['routes/schemas.ts', "import { User } from './users/schemas.ts'"],
    ['db/migrations/0002_more.ts', "import { randomUUID } from 'node:crypto'"],
    ['db/migrations/0002_more.ts', "import { roles } from '../../src/auth/roles.ts'"],
    ['db/migrations/0002_more.ts', "import { up } from './0001_core.ts'"],
    ['db/migrations/0002_more.ts', "import pg from 'pg'"],
    ['src/keys.ts', "import { a } from './errors'"],
    ['src/keys.ts', "import { a } from './errors.js'"],
    ['plugins/http/cors.ts', 'const plugin = await import(name)']
  ]
  for (const [file, source] of refused) t.equal(importFaults(file, source).length > 0, true, `${file}: ${source}`)

  const accepted: [file: string, source: string][] = [
    ['src/keys.ts', "import { a } from './errors.ts'"],
    ['src/app.ts', "import cors from '../plugins/http/cors.ts'"],
    ['src/cli/keys.ts', "import { gate } from '../../db/gate/gate.ts'"],
    [
      'db/gate/gate.ts',
      "import { a } from '../../src/auth/roles.ts'\nimport { sql } from 'kysely'\nimport { b } from '../tables.ts'"
    ],
    ['plugins/http/cors.ts', "import type { Tenants } from '../tenancy/tenants.ts'\nimport fp from 'fastify-plugin'"],
    ['plugins/http/cors.ts', "import { a } from '../../db/gate/gate.ts'"],
    ['routes/users/index.ts', "import { a } from './queries.ts'\nimport { b } from '../schemas.ts'"],
    [
      'routes/users/index.ts',
      "import { a } from '../../db/queries/users.ts'\nimport { b } from '../../src/http/problems.ts'"
    ],
    ['db/migrations/0002_more.ts', "import { type Kysely, sql } from 'kysely'"],
    ['test/any.test.ts', "import { a } from '../plugins/http/cors.ts'"]
  ]
  for (const [file, source] of accepted) t.strictSame(importFaults(file, source), [], `${file}: ${source}`)
})

t.test('the other rules catch what is planted', async (t) => {
  t.equal(wordFaults('src/a.ts', "console.log('x')").length, 1)
  t.equal(wordFaults('src/a.ts', "console['error']('x')").length, 1)
  t.equal(wordFaults('src/a.ts', `// ${'TO'}${'DO'}: later`).length, 1)
  t.strictSame(wordFaults('src/a.ts', "const host = 'minio-console'"), [])
  t.equal(pluginFaults('plugins/a.ts', 'export default async (app) => {}').length, 2)
  t.equal(pluginFaults('plugins/a.ts', "export default fp(async () => {}, { name: 'b' })").length, 1)
  t.strictSame(pluginFaults('plugins/a.ts', "export default fp(async () => {}, { name: 'a' })"), [])
  t.equal(undeclaredPackages('src/a.ts', "import x from '@a/b/c'\nimport y from 'z/w'", new Set(['z'])).length, 1)
})

/** Paths that lead back to where they began, as the nodes on them. */
function circlesIn(graph: ReadonlyMap<string, ReadonlySet<string>>): string[][] {
  const circles: string[][] = []
  const done = new Set<string>()
  const visit = (node: string, way: string[]): void => {
    const at = way.indexOf(node)
    if (at !== -1) return void circles.push([...way.slice(at), node])
    if (done.has(node)) return
    for (const next of graph.get(node) ?? []) visit(next, [...way, node])
    done.add(node)
  }
  for (const node of graph.keys()) visit(node, [])
  return circles
}

/** Which node imports which, where `nodeOf` says to which node a file belongs; undefined: to none. */
function importGraph(files: [file: string, source: string][], nodeOf: (file: string) => string | undefined) {
  const graph = new Map<string, Set<string>>()
  for (const [file, source] of files) {
    const from = nodeOf(file)
    if (from === undefined) continue
    for (const { specifier } of importsOf(source).filter(({ specifier }) => isRelative(specifier))) {
      const to = nodeOf(posix.join(folderOf(file), specifier))
      if (to !== undefined && to !== from) graph.set(from, (graph.get(from) ?? new Set()).add(to))
    }
  }
  return graph
}

const unclear = /^(?:service|manager|helper|util|dto)s?$/

/** A file is called by a noun in kebab-case that says what is in it. */
function nameFaults(file: string): string[] {
  // frozen, and named before this rule
  if (zoneOf(file) === 'migration') return []
  const name = basename(file).replace(/(?:\.test|\.d)?\.(?:ts|cjs)$/, '')
  const faults = /^[a-z0-9]+(?:-[a-z0-9]+)*$/.test(name) ? [] : [`${file} is not in kebab-case`]
  if (name.split('-').some((word) => unclear.test(word))) faults.push(`${file} does not say what is in it`)
  return faults
}

const maxLines = { source: 300, test: 500 }
const maxFiles = 20

function sizeFaults(file: string, source: string): string[] {
  const lines = source.split('\n').length - 1
  const max = maxLines[zoneOf(file) === 'test' ? 'test' : 'source']
  return zoneOf(file) !== 'migration' && lines > max ? [`${file} has ${lines} lines`] : []
}

/** Folders of code that hold too much to be looked through. */
function fullFolders(files: string[]): string[] {
  const counts = new Map<string, number>()
  for (const file of files) counts.set(folderOf(file), (counts.get(folderOf(file)) ?? 0) + 1)
  return [...counts].filter(([, count]) => count > maxFiles).map(([folder, count]) => `${folder} has ${count} files`)
}

t.test('imports make no circle, of files or of folders', async (t) => {
  t.strictSame(circlesIn(importGraph(product, (file) => file)), [])
  const room = (file: string) => (zoneOf(file) === 'wiring' ? undefined : folderOf(file))
  t.strictSame(circlesIn(importGraph(product, room)), [])
})

t.test('files and folders are small, and called by what is in them', async (t) => {
  t.strictSame(
    everything.flatMap(([file, source]) => [...sizeFaults(file, source), ...nameFaults(file)]),
    []
  )
  t.strictSame(fullFolders(product.map(([file]) => file).filter((file) => zoneOf(file) !== 'migration')), [])
})

t.test('a circle, a large file and an unclear name are found', async (t) => {
  const planted: [file: string, source: string][] = [
    ['src/a/one.ts', "import { b } from '../b/two.ts'"],
    ['src/b/two.ts', "import { c } from '../b/three.ts'"],
    ['src/b/three.ts', "import { d } from '../a/four.ts'"],
    ['src/a/four.ts', '']
  ]
  t.strictSame(circlesIn(importGraph(planted, (file) => file)), [])
  t.strictSame(circlesIn(importGraph(planted, folderOf)), [['src/a', 'src/b', 'src/a']])
  t.equal(sizeFaults('src/a.ts', '\n'.repeat(301)).length, 1)
  t.strictSame(sizeFaults('test/a.test.ts', '\n'.repeat(301)), [])
  t.equal(sizeFaults('test/a.test.ts', '\n'.repeat(501)).length, 1)
  t.equal(nameFaults('src/tokenStore.ts').length, 1)
  t.equal(nameFaults('src/token-helpers.ts').length, 1)
  t.strictSame(nameFaults('test/token-cache.test.ts'), [])
  t.equal(fullFolders(Array.from({ length: 21 }, (_, i) => `src/a/${i}.ts`)).length, 1)
})

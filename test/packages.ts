import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { rolldown } from 'rolldown'

/*
 * Bundles the packages. A run starts hundreds of processes, and finding and reading the thousands of files of these
 * packages was more than half of the CPU time of each start. The product's own files stay as they are, and are found
 * without looking for other names.
 */

/**
 * The imports that are bundled, each as the sources write it. Not packages that have native code or read their own
 * files.
 */
const bundled = [
  ...['tap', 'fastify', 'fastify-plugin', 'kysely', 'kysely/migration', 'yaml', 'minio', 'ioredis'],
  ...['@sinclair/typebox', '@sinclair/typebox/value', '@sinclair/typebox/compiler'],
  ...[
    '@fastify/cors',
    '@fastify/jwt',
    '@fastify/multipart',
    '@fastify/rate-limit',
    '@fastify/redis',
    '@fastify/swagger'
  ],
  ...['@fastify/type-provider-typebox', 'ajv', 'ajv/dist/2020.js', 'ajv-formats', 'ajv-formats/dist/formats.js'],
  ...['prom-client', 'file-type', 'nodemailer', '@zxcvbn-ts/language-common', 'fast-json-stringify', 'lru-cache'],
  ...['uuid', 'aws4fetch', 'tldts', 'commander', 'otpauth', 'oauth4webapi', 'openid-client', 'fast-check'],
  ...['@simplewebauthn/server', '@simplewebauthn/server/helpers'],
  ...['pg', 'pg/lib/utils.js', 'pg-protocol', 'pg-protocol/dist/parser.js']
]

const root = join(import.meta.dirname, '..')
const cache = join(root, 'node_modules', '.cache', 'bundles')

/**
 * Bundles the packages, unless these versions are bundled already. Resolves to the module that a process loads first
 * (`node --import`), so that its imports find the bundle.
 */
export async function bundlePackages(): Promise<string> {
  const hash = createHash('sha256')
  for (const file of ['package-lock.json', 'test/packages.ts']) hash.update(readFileSync(join(root, file)))
  const folder = join(cache, hash.digest('hex').slice(0, 16))
  const preload = pathToFileURL(join(folder, 'preload.mjs')).href
  if (existsSync(folder)) return preload

  mkdirSync(cache, { recursive: true })
  const unfinished = mkdtempSync(join(cache, 'unfinished-'))
  await writeBundle(unfinished)
  writeFileSync(join(unfinished, 'preload.mjs'), preloadSource)
  try {
    renameSync(unfinished, folder)
  } catch (err) {
    // another run was faster
    if (!existsSync(folder)) throw err
    rmSync(unfinished, { recursive: true })
  }
  return preload
}

/** The file of an import. By a folder named after the package tap knows its own lines, and leaves them out of stacks. */
const fileOf = (specifier: string) => `node_modules/${specifier.replaceAll(/\W/g, '-')}/index.mjs`

/**
 * Maps the imports of our own files: of a package to its bundle, and of a source to its path, as it is written. A package
 * that is not bundled finds its dependencies as usual.
 */
const preloadSource = `import { enableCompileCache, registerHooks } from 'node:module'
import { fileURLToPath } from 'node:url'
// each process loads the same sources: compiled once, they cost half the CPU time
enableCompileCache(fileURLToPath(new URL('../../compiled', import.meta.url)))
const files = new Map(${JSON.stringify(bundled.map((each) => [each, fileOf(each)]))})
registerHooks({
  resolve(specifier, context, next) {
    const { parentURL = '' } = context
    if (parentURL.includes('/node_modules/')) return next(specifier, context)
    if (/^\\.\\.?\\/.*\\.ts$/.test(specifier) && parentURL.startsWith('file:')) {
      return { url: new URL(specifier, parentURL).href, format: 'module-typescript', shortCircuit: true }
    }
    const file = files.get(specifier)
    if (file === undefined) return next(specifier, context)
    return { url: new URL(file, import.meta.url).href, format: 'module', shortCircuit: true }
  }
})
`

async function writeBundle(folder: string): Promise<void> {
  // a module for each import, with the names that Node finds there
  const prefix = '\0entry:'
  const entries = new Map<string, string>()
  // tap is not loaded here: it would take this process for a file of tests, and end it after its time-out
  for (const each of bundled)
    entries.set(prefix + each, entrySource(each, each === 'tap' ? ['default'] : Object.keys(await import(each))))
  const bundle = await rolldown({
    cwd: root,
    input: Object.fromEntries(bundled.map((each) => [fileOf(each), prefix + each])),
    platform: 'node',
    external: ['pg-native'],
    plugins: [
      {
        name: 'entries',
        resolveId(id, importer) {
          if (id.startsWith(prefix)) return id
          return importer?.startsWith(prefix) ? this.resolve(id, join(root, 'package.json')) : undefined
        },
        load: (id) => entries.get(id)
      }
    ]
  })
  await bundle.write({ dir: folder, format: 'esm', entryFileNames: '[name]', chunkFileNames: 'shared-[hash].mjs' })
  await bundle.close()
}

/** What Node exports from a package: each name of an ES module, and of CommonJS also the whole as the default. */
function entrySource(specifier: string, names: string[]): string {
  const from = JSON.stringify(specifier)
  const named = names.filter((name) => name !== 'default' && name !== 'module.exports')
  if (!names.includes('module.exports')) {
    return `export * from ${from}\n${names.includes('default') ? `export { default } from ${from}\n` : ''}`
  }
  const lines = named.map(
    (name, i) => `const e${i} = whole[${JSON.stringify(name)}]\nexport { e${i} as ${JSON.stringify(name)} }\n`
  )
  return `import whole from ${from}\nexport default whole\n${lines.join('')}`
}

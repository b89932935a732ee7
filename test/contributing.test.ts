import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { createDatabase, dropDatabase, templateDatabase } from './databases.ts'
import { password, root } from './harness.ts'
import { copySources } from './source-copy.ts'

/*
 * The walk in CONTRIBUTING.md, carried out in a copy of the sources: its blocks are written to the files that they name, the new
 * migration runs on a fresh database, the server starts, and the tests of the isolation know the new resource.
 */

type Block = { path: string; code: string }
type Insertion = { path: string; begins: RegExp; before?: string; after?: string }

const guide = readFileSync(join(root, 'CONTRIBUTING.md'), 'utf8')
const blocks = [...guide.matchAll(/^```(?:ts|md) (\S+)\n(.*?)^```$/gms)].map(
  ([, path = '', code = '']): Block => ({ path, code })
)
const isNew = ({ path }: Block) => !existsSync(join(root, path))

/** Where a block goes in an existing file. The guide says it in words. */
const insertions: Insertion[] = [
  { path: 'src/app.ts', begins: /^import/, after: "import membersRoutes from '../routes/members/index.ts'\n" },
  { path: 'src/app.ts', begins: /^ +api\.register/, before: '      api.register(problemsRoutes' },
  { path: 'test/authz-policy.ts', begins: /^async function/, before: 'export const policies: ' },
  { path: 'test/authz-policy.ts', begins: /^ {2}\/\//, after: 'export const policies: Record<string, Policy> = {\n' },
  { path: 'test/isolation-world.ts', begins: /^ {6}await sql/, before: '      // to be listed; ' },
  { path: 'test/row-security.test.ts', begins: /^ {2}notes/, after: "($1, $2, 'owner'), ($1, $3, 'viewer')`,\n" },
  { path: 'test/growth.test.ts', begins: /^ {2}notes/, before: '  tenants: { bound:' },
  { path: 'docs/scaling.md', begins: /^\| `notes`/, before: '| `invitations`, `outbox` |' }
]

function follow(folder: string, block: Block): void {
  const file = join(folder, block.path)
  if (isNew(block)) {
    mkdirSync(dirname(file), { recursive: true })
    writeFileSync(file, block.code)
    return
  }
  const place = insertions.find(({ path, begins }) => path === block.path && begins.test(block.code))
  if (!place) throw new Error(`the test does not know where this goes in ${block.path}:\n${block.code}`)
  const mark = place.before ?? place.after ?? ''
  const [above, below, ...more] = readFileSync(file, 'utf8').split(mark)
  if (above === undefined || below === undefined || more.length > 0) throw new Error(`${block.path} has no one ${mark}`)
  const inserted = place.before === undefined ? [above, mark, block.code, below] : [above, block.code, mark, below]
  writeFileSync(file, inserted.join(''))
}

/** Runs a file in the copy with Node. Resolves to its output, and rejects with it. */
async function runThere(folder: string, args: string[], env: NodeJS.ProcessEnv = {}): Promise<string> {
  // without the environment that tap gives to this file
  const { PATH, HOME, TEST_DIR, TEST_POSTGRES, TAP_TIMEOUT } = process.env
  const options = { cwd: folder, env: { PATH, HOME, TEST_DIR, TEST_POSTGRES, TAP_TIMEOUT, ...env }, maxBuffer: 2 ** 26 }
  try {
    return (await promisify(execFile)(process.execPath, [...process.execArgv, ...args], options)).stdout
  } catch (err) {
    const { stdout, stderr } = err as { stdout: string; stderr: string }
    throw new Error(`${args.join(' ')}:\n${stdout.slice(-4000)}\n${stderr.slice(-4000)}`)
  }
}

/** Creates a database without tables, and makes it the template database of the copied tests. */
async function createFreshDatabase(t: Test, folder: string) {
  const name = `walk_${process.pid}`
  const database = await createDatabase(name, 'template1')
  t.teardown(() => dropDatabase(name))
  const file = join(folder, 'test', 'databases.ts')
  writeFileSync(file, readFileSync(file, 'utf8').replace(`'${templateDatabase}'`, `'${name}'`))
  return database
}

t.test('a resource is one folder in routes, one migration and two lines elsewhere', async (t) => {
  const product = blocks.filter(({ path }) => /^(src|plugins|routes|db)\//.test(path))
  const folders = new Set(product.filter(isNew).map(({ path }) => dirname(path)))
  t.strictSame([...folders].sort(), ['db/migrations', 'routes/notes'])
  t.equal(product.filter(({ path }) => path.startsWith('db/migrations/')).length, 1)
  const lines = product.filter((block) => !isNew(block)).flatMap(({ code }) => code.trimEnd().split('\n'))
  t.equal(lines.length, 2)
})

t.test('the walk in CONTRIBUTING.md', async (t) => {
  const folder = copySources(t)
  const database = await createFreshDatabase(t, folder)
  for (const block of blocks) follow(folder, block)

  await t.test('its types are right', async () => {
    await runThere(folder, [join('node_modules', 'typescript', 'lib', 'tsc.js'), '--noEmit'])
  })

  await t.test('its migration runs on a fresh database', async (t) => {
    const output = await runThere(folder, [join('src', 'cli', 'migrate.ts')], { DATABASE_OWNER_URL: database.owner })
    t.match(output, /^applied 0001_core$.*^applied \d{4}_notes$.*^the schema is up to date$/ms)
  })

  await t.test('an agency uses it, and another one sees none of it', async (t) => {
    // the harness of the copy starts the server of the copy, on a copy of the database
    const harness = (await import(join(folder, 'test', 'harness.ts'))) as typeof import('./harness.ts')
    const server = await harness.startServer(t, harness.testEnvironment(await harness.createTestDatabase(t)))
    const call = async (token: string | undefined, method: string, path: string, body?: object) => {
      const reply = await fetch(`${server.url}/api/v1${path}`, {
        method,
        headers: {
          ...(token && { authorization: `Bearer ${token}` }),
          ...(body && { 'content-type': 'application/json' })
        },
        ...(body && { body: JSON.stringify(body) })
      })
      const text = await reply.text()
      return { status: reply.status, body: text === '' ? undefined : JSON.parse(text) }
    }
    const found = async (slug: string): Promise<string> => {
      const tenant = { name: slug, slug }
      const owner = { tenant, name: 'Owner', email: `owner@${slug}.example`, password }
      return (await call(undefined, 'POST', '/auth/register', owner)).body.access_token
    }
    const [acme, rival] = [await found('acme'), await found('rival')]

    const written = await call(acme, 'POST', '/notes', { text: 'Ada is back on Monday' })
    t.match(written, { status: 201, body: { text: 'Ada is back on Monday', id: String, author_id: String } })
    const { id } = written.body
    t.strictSame((await call(acme, 'GET', '/notes')).body, { data: [written.body], next_cursor: null })
    t.strictSame((await call(rival, 'GET', '/notes')).body, { data: [], next_cursor: null })
    t.match(await call(rival, 'DELETE', `/notes/${id}`), { status: 404, body: { code: 'not_found' } })
    t.match(await call(undefined, 'GET', '/notes'), { status: 401, body: { code: 'unauthenticated' } })
    t.match(await call(acme, 'POST', '/notes', { text: '' }), { status: 400, body: { code: 'validation_failed' } })
    t.match(await call(acme, 'GET', '/audit-events?action=note.created'), { body: { data: [{ target_id: id }] } })
    t.equal((await call(acme, 'DELETE', `/notes/${id}`)).status, 204)
    t.strictSame((await call(acme, 'GET', '/notes')).body.data, [])
    server.child.kill('SIGTERM')
    await server.exited
  })

  await t.test('the proofs know it', async (t) => {
    writeFileSync(
      join(folder, 'test', 'isolation-notes.test.ts'),
      `import t from 'tap'
import { proveMatrix } from './isolation.ts'

// rehearsal: the walk of CONTRIBUTING.md, followed in a copy

t.test('no wrong actor gets through any operation of notes', async (t) => {
  const { operations } = await proveMatrix(t, ({ path }) => path.startsWith('/api/v1/notes'))
  t.equal(operations, 3)
})
`
    )
    for (const name of ['isolation-notes', 'row-security', 'growth', 'scaling', 'architecture']) {
      t.match(await runThere(folder, [join('test', `${name}.test.ts`)]), /^1\.\.\d+$/m, name)
    }
  })
})

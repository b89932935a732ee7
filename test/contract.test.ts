import { cpSync, existsSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import t, { type Test } from 'tap'
import { catalogue } from '../src/http/problems.ts'
import { clientFolder, run, send, startApp } from './harness.ts'
import type { Json } from './tokens.ts'

type Document = {
  info: Json
  tags: { name: string }[]
  paths: Record<string, Record<string, { responses: Json }>>
  components: {
    schemas: Record<string, { properties: Record<string, Json> }>
    examples?: Record<string, { value: unknown }>
    securitySchemes: Json
  }
}

const readDocument = (): Document => JSON.parse(readFileSync(join(clientFolder, 'openapi.json'), 'utf8'))

const present = existsSync(join(clientFolder, 'node_modules')) || process.env.CI === 'true'
const needsPackages = { skip: present ? false : 'client/node_modules is not there: npm --prefix client ci' }

t.test('the document in client/', async (t) => {
  const app = await startApp(t)
  const document = readDocument()

  t.test('is what the server serves', async (t) => {
    t.strictSame(document, JSON.parse(JSON.stringify(app.swagger())), 'npm run openapi writes it')
  })

  t.test('has examples that obey their schemas', async (t) => {
    const ajv = new Ajv2020({ strict: false, allErrors: true })
    addFormats.default(ajv).addFormat('web-origin', true)
    ajv.addSchema(document, 'openapi')
    let examples = 0
    for (const { schema, example, at } of examplesOf(document)) {
      examples++
      if (!ajv.validate(schema, example)) t.fail(`${at}: ${JSON.stringify(example)} ${ajv.errorsText()}`)
    }
    t.ok(examples > 40)
  })

  t.test('lists the codes of the catalogue, and the server has a page for each', async (t) => {
    const codes = document.components.schemas.Problem?.properties.code?.enum as string[]
    t.strictSame([...codes].sort(), [...catalogue.keys()].sort())
    for (const code of codes) {
      const page = await send(app, 'localhost', `/api/v1/problems/${code}`)
      t.equal(page.statusCode, 200, code)
      t.match(page.headers['content-type'], /^text\/html/)
      t.match(page.body, `<h1>${catalogue.get(code)?.title}</h1>`)
    }
    t.equal((await send(app, 'localhost', '/api/v1/problems/no_such_code')).statusCode, 404)
  })
})

t.test('the types of the client are made of the document', needsPackages, async (t) => {
  const { stdout } = await run('npm', ['run', '--silent', 'types'], { cwd: clientFolder, maxBuffer: 1e7 })
  t.ok(stdout.includes('export interface paths'))
  t.ok(stdout === readFileSync(join(clientFolder, 'src', 'schema.d.ts'), 'utf8'), 'npm run generate writes them')
})

t.test('the linters of the contract', needsPackages, async (t) => {
  await Promise.all([
    t.test('find nothing', async (t) => {
      t.match(await lint(t, () => {}), { code: 0 })
    }),
    t.test('would find what Redocly warns of', async (t) => {
      const { code, output } = await lint(t, (document) => {
        keepOnePath(document)
        delete document.info.license
      })
      t.not(code, 0)
      t.match(output, 'info-license')
    }),
    t.test('would find what Spectral warns of', async (t) => {
      const { code, output } = await lint(t, (document) => {
        keepOnePath(document)
        delete document.info.contact
      })
      t.not(code, 0)
      t.match(output, 'info-contact')
    })
  ])
})

/** Removes all but one path and what it needs: the linters find nothing in that either, sooner than in the whole. */
function keepOnePath(document: Document): void {
  const path = '/api/v1/users/me'
  document.paths = { [path]: document.paths[path] as Document['paths'][string] }
  document.tags = document.tags.filter(({ name }) => name === 'me')
  const { securitySchemes: _, ...components } = document.components
  const unused = () => {
    const text = JSON.stringify(document)
    return Object.entries(components).flatMap(([kind, all]) =>
      Object.keys(all)
        .filter((name) => !text.includes(`"#/components/${kind}/${name}"`))
        .map((name) => ({ all, name }))
    )
  }
  for (let found = unused(); found.length > 0; found = unused()) for (const { all, name } of found) delete all[name]
}

/** Runs the script on a copy of the document with a change. */
async function lint(t: Test, change: (document: Document) => void): Promise<{ code: number; output: string }> {
  const dir = t.testdir()
  const files = ['package.json', '.spectral.yaml', '.redocly.lint-ignore.yaml']
  for (const file of files) cpSync(join(clientFolder, file), join(dir, file))
  symlinkSync(join(clientFolder, 'node_modules'), join(dir, 'node_modules'))
  const document = readDocument()
  change(document)
  writeFileSync(join(dir, 'openapi.json'), JSON.stringify(document))
  const done = await run('npm', ['run', '--silent', 'lint'], { cwd: dir }).catch((err) => err)
  return { code: done.code ?? 0, output: done.stdout + done.stderr }
}

/** Every example in the document, with a reference to its schema. */
function* examplesOf(
  node: unknown,
  way: string[] = [],
  root = node as Document
): Generator<{ schema: Json; example: unknown; at: string }> {
  if (node === null || typeof node !== 'object') return
  const { schema, example, examples } = node as Json
  const at = way.map((part) => part.replaceAll('~', '~0').replaceAll('/', '~1')).join('/')
  const refer = (pointer: string) => ({ $ref: `openapi#/${pointer.split('/').map(encodeURIComponent).join('/')}` })
  // the examples of a parameter and of a media type stand beside the schema, those of a schema in it
  if (schema && example !== undefined) yield { schema: refer(`${at}/schema`), example, at }
  if (schema && examples)
    for (const { value, $ref } of Object.values(examples as Record<string, { value?: unknown; $ref?: string }>)) {
      const named = $ref === undefined ? undefined : root.components.examples?.[$ref.split('/').at(-1) as string]
      yield { schema: refer(`${at}/schema`), example: named === undefined ? value : named.value, at }
    }
  const isMember = way.at(-1) === 'properties'
  if (!isMember && Array.isArray(examples)) for (const each of examples) yield { schema: refer(at), example: each, at }
  for (const [key, value] of Object.entries(node)) {
    if (key !== 'example' && (key !== 'examples' || isMember)) yield* examplesOf(value, [...way, key], root)
  }
}

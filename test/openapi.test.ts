import { Ajv } from 'ajv'
import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import fastJsonStringify from 'fast-json-stringify'
import type { FastifyInstance, FastifySchema } from 'fastify'
import t, { type Test } from 'tap'
import { parse } from 'yaml'
import { buildApp } from '../src/app.ts'
import { readConfig } from '../src/config/config.ts'
import { problemExamples } from '../src/http/problem-schemas.ts'
import { catalogue } from '../src/http/problems.ts'
import { createTestDatabase, send, startApp, testEnvironment } from './harness.ts'
import type { Json } from './tokens.ts'

type Operation = {
  operationId?: string
  summary?: string
  tags?: string[]
  security?: Record<string, unknown>[]
  'x-authz'?: string
  parameters?: { name: string; in: string; required?: boolean; schema?: Json }[]
  requestBody?: { content: Record<string, { schema: Json }> }
  responses: Record<string, { description?: string; headers?: Json; content?: Record<string, { schema: Json }> }>
}
type Document = Json & {
  openapi: string
  info: Json
  tags: { name: string }[]
  paths: Record<string, Record<string, Operation>>
  components: { schemas: Record<string, Json>; securitySchemes: Json }
}

const accessWords = ['public', 'user', 'viewer', 'member', 'admin', 'owner']
const isAsset = (url: string) => url === '/api/v1/docs' || url.startsWith('/api/v1/docs/')

/** Starts the application, and records the routes as the router itself registers them. */
async function startWithRoutes(t: Test) {
  const app = buildApp(readConfig(testEnvironment(await createTestDatabase(t))))
  const routes: { method: string; url: string; schema: FastifySchema }[] = []
  app.addHook('onRoute', ({ method, url, schema = {} }) => {
    for (const each of [method].flat()) routes.push({ method: each, url, schema })
  })
  t.teardown(() => app.close())
  await app.ready()
  return { app: app as unknown as FastifyInstance, routes }
}

async function readDocument(app: FastifyInstance): Promise<Document> {
  const reply = await send(app, 'localhost', '/api/v1/openapi.json')
  if (reply.statusCode !== 200) throw new Error(reply.body)
  return reply.json()
}

function operationsOf(document: Document): { name: string; path: string; method: string; operation: Operation }[] {
  return Object.entries(document.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({
      name: `${method.toUpperCase()} ${path}`,
      path,
      method,
      operation
    }))
  )
}

/** Every object in a tree, with its path. */
function* nodesOf(node: unknown, way: string[] = []): Generator<{ node: Json; way: string[] }> {
  if (node === null || typeof node !== 'object') return
  if (!Array.isArray(node)) yield { node: node as Json, way }
  for (const [key, value] of Object.entries(node)) yield* nodesOf(value, [...way, key])
}

function resolve(document: Document, pointer: string): unknown {
  return pointer
    .split('/')
    .slice(1)
    .map((part) => decodeURIComponent(part).replaceAll('~1', '/').replaceAll('~0', '~'))
    .reduce<unknown>((node, key) => (node as Json | undefined)?.[key], document)
}

/** A schema with its references resolved. */
function inlined(document: Document, node: unknown): unknown {
  if (Array.isArray(node)) return node.map((each) => inlined(document, each))
  if (node === null || typeof node !== 'object') return node
  const { $ref } = node as { $ref?: string }
  if ($ref !== undefined) return inlined(document, resolve(document, $ref))
  return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, inlined(document, value)]))
}

t.test('the document and the routes are one set', async (t) => {
  const { app, routes } = await startWithRoutes(t)
  const document = await readDocument(app)
  const documented = operationsOf(document).map(({ name }) => name)
  const registered = routes
    // every GET route has a HEAD route
    .filter(({ method, url }) => method !== 'HEAD' || !routes.some((each) => each.method === 'GET' && each.url === url))
    .filter(({ method, url }) => method !== 'OPTIONS' && !isAsset(url))
    .map(({ method, url }) => `${method} ${url.replaceAll(/:(\w+)/g, '{$1}').replace(/(?<=.)\/$/, '')}`)
  t.ok(documented.length > 15)
  t.strictSame([...new Set(registered)].sort(), [...documented].sort())

  t.test('and the router knows every one of them', async (t) => {
    for (const { name, path, method } of operationsOf(document)) {
      const url = path.replaceAll(/\{(\w+)\}/g, ':$1')
      const found = [url, `${url}/`].some((each) => app.hasRoute({ method: method.toUpperCase() as 'GET', url: each }))
      t.ok(found, name)
    }
  })
  t.test('the paths of the first clients are left out', async (t) => {
    for (const path of ['/api/auth/login', '/api/auth/refresh', '/api/logout', '/api/users/me', '/api/health']) {
      t.notOk(path in document.paths, path)
    }
    for (const path of Object.keys(document.paths)) {
      // RFC 8414 says where the metadata of OAuth lies
      t.ok(path.startsWith('/api/v1/') || path === '/.well-known/oauth-authorization-server', path)
    }
  })
  t.test('what is registered beside it is for preflights, HEAD, tus and the page that shows it', async (t) => {
    const others = routes.filter(({ method, url }) => method === 'OPTIONS' && url !== '*' && !isAsset(url))
    t.match(others, [{ method: 'OPTIONS', url: '/api/v1/files/resumable' }])
    t.equal(others.length, 1)
  })
  t.test('each schema is valid, and can be compiled when a request needs it', async (t) => {
    const metaSchema = new Ajv({ strict: false })
    let count = 0
    const check = (where: string, schema: object, compile: () => unknown) => {
      count++
      t.ok(metaSchema.validateSchema(schema), `${where}: ${metaSchema.errorsText()}`)
      t.doesNotThrow(compile, where)
    }
    for (const { method, url, schema } of routes) {
      const { response = {}, body, querystring, params, headers } = schema as Record<string, Json>
      for (const [httpPart, each] of Object.entries({ body, querystring, params, headers })) {
        if (each === undefined) continue
        // a validator is compiled by its first call
        check(`${method} ${url} ${httpPart}`, each, () =>
          app.validatorCompiler?.({ schema: each, method, url, httpPart })({})
        )
      }
      for (const [status, each] of Object.entries(response as Record<string, Json>)) {
        const contents = Object.values((each.content ?? { json: { schema: each } }) as Record<string, { schema: Json }>)
        for (const { schema } of contents) check(`${method} ${url} ${status}`, schema, () => fastJsonStringify(schema))
      }
    }
    t.ok(count > 150, `${count} schemas`)
  })
})

t.test('the document', async (t) => {
  const app = await startApp(t)
  const document = await readDocument(app)
  const operations = operationsOf(document)

  t.test('is OpenAPI 3.1, by its own words', async (t) => {
    t.match(document.openapi, /^3\.1\.\d+$/)
    t.match(document.info, { title: String, version: /^\d+\.\d+\.\d+/ })
    t.match(document.components.securitySchemes, {
      bearer: { type: 'http', scheme: 'bearer' },
      dpop: { type: 'http', scheme: 'dpop' }
    })
    // keywords of OpenAPI 3.0 that 3.1 doesn't have
    const leftovers = [...nodesOf(document)]
      .filter(({ way }) => way.some((part) => part === 'schema' || part === 'schemas') && way.at(-1) !== 'properties')
      .filter(({ node }) => typeof node.nullable === 'boolean' || 'example' in node)
      .map(({ way }) => way.join('/'))
    t.strictSame(leftovers, [])
  })
  t.test('refers to nothing that is not in it', async (t) => {
    let references = 0
    for (const { node, way } of nodesOf(document)) {
      if (typeof node.$ref !== 'string') continue
      references++
      t.match(node.$ref, /^#\//)
      t.not(resolve(document, node.$ref), undefined, `${node.$ref} at ${way.join('/')}`)
    }
    t.ok(references > operations.length)
  })
  t.test('describes every operation', async (t) => {
    const tags = document.tags.map(({ name }) => name)
    for (const { name, path, operation } of operations) {
      t.match(operation.operationId, /^[a-z][A-Za-z0-9]+$/, `${name} has a name that generators can use`)
      t.ok(operation.summary, `${name} has a summary`)
      t.ok(operation.tags?.length === 1 && tags.includes(operation.tags[0] as string), `${name} has one known tag`)
      t.ok(Array.isArray(operation.security), `${name} has security`)
      t.ok(accessWords.includes(operation['x-authz'] as string), `${name} has x-authz`)
      const named = [...path.matchAll(/\{(\w+)\}/g)].map(([, parameter]) => parameter)
      const declared = operation.parameters?.filter((parameter) => parameter.in === 'path') ?? []
      t.strictSame(
        declared.map((parameter) => parameter.name),
        named,
        `${name} declares its path parameters`
      )
      t.ok(
        declared.every((parameter) => parameter.required),
        `${name} requires them`
      )
    }
    const ids = operations.map(({ operation }) => operation.operationId)
    t.equal(new Set(ids).size, ids.length, 'no name twice')
  })
  t.test('demands a token exactly where the route does', async (t) => {
    for (const { name, operation } of operations) {
      const isPublic = operation['x-authz'] === 'public'
      const withoutToken =
        operation.security?.length === 0 || operation.security?.some((one) => !('bearer' in one || 'dpop' in one))
      t.equal(withoutToken, isPublic, name)
      const takes = (scheme: string) => operation.security?.some((one) => scheme in one)
      t.equal(takes('dpop'), takes('bearer'), `${name} takes both kinds of tokens, or none`)
    }
    // a public operation that also accepts a bearer
    const logout = document.paths['/api/v1/auth/logout']?.post
    t.strictSame(logout?.security, [{ bearer: [] }, { dpop: [] }, {}], 'logout takes a token, or none')
  })
  t.test('shows an example in the schemas of every operation', async (t) => {
    for (const { name, operation } of operations) {
      const bodies = [operation.requestBody, ...Object.values(operation.responses)]
        .flatMap((one) => Object.values(one?.content ?? {}))
        .map(({ schema }) => inlined(document, schema))
      const withExample = [...nodesOf([bodies, inlined(document, operation.parameters ?? [])])].filter(({ node }) =>
        Array.isArray(node.examples)
      )
      t.ok(withExample.length > 0, name)
    }
  })
  t.test('shows an example of every member that a client writes', async (t) => {
    for (const { name, operation } of operations) {
      for (const [type, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
        for (const { node, way } of nodesOf(inlined(document, schema))) {
          if (way.at(-2) !== 'properties' || node.properties) continue
          t.ok(Array.isArray(node.examples), `${name} ${type} ${way.join('/')}`)
        }
      }
    }
  })
  t.test('has valid schemas, and examples that obey them', async (t) => {
    const ajv = new Ajv2020({ strict: false, allErrors: true })
    addFormats.default(ajv).addFormat('web-origin', true)
    let examples = 0
    // thousands of replies are described by the same few schemas
    const seen = new Set<string>()
    for (const { node, way } of nodesOf(inlined(document, document))) {
      const isSchema = (typeof node.type === 'string' || Array.isArray(node.type)) && way.at(-1) !== 'properties'
      if (!isSchema || way.includes('examples') || !way.some((part) => /^schemas?$/.test(part))) continue
      const text = JSON.stringify(node)
      if (seen.has(text)) continue
      seen.add(text)
      const { examples: given, ...schema } = node
      const validate = ajv.compile(schema)
      for (const example of Array.isArray(given) ? given : []) {
        examples++
        if (!validate(example))
          t.fail(`${way.join('/')}: ${JSON.stringify(example)} ${ajv.errorsText(validate.errors)}`)
      }
    }
    t.ok(examples > 50)
  })
  t.test('refuses unknown members in every body', async (t) => {
    for (const { name, operation } of operations) {
      for (const { schema } of Object.values(operation.requestBody?.content ?? {})) {
        for (const { node, way } of nodesOf(inlined(document, schema))) {
          if (node.properties && way.at(-1) !== 'properties') {
            t.equal(node.additionalProperties, false, `${name} ${way.join('/')}`)
          }
        }
      }
    }
  })
  t.test('answers every error with a problem', async (t) => {
    for (const { name, operation } of operations) {
      const statuses = Object.keys(operation.responses)
      t.ok(
        statuses.some((status) => /^[23]\d\d$/.test(status)),
        `${name} can succeed`
      )
      const errors = statuses.filter((status) => !/^[23]\d\d$/.test(status))
      t.ok(errors.includes('400') && errors.includes('500') && errors.includes('503'), `${name} can fail`)
      for (const status of errors) {
        const { content, description = '' } = operation.responses[status] ?? {}
        const codes = [...description.matchAll(/`(\w+)`: /g)].map(([, code = '']) => code)
        const shown = codes.filter((code) => code in problemExamples)
        const examples = Object.fromEntries(shown.map((code) => [code, { $ref: `#/components/examples/${code}` }]))
        const schema = { $ref: '#/components/schemas/Problem' }
        // OAuth clients read the errors that RFC 6749 names as `application/json`
        const types = codes.map((each) => `application/${catalogue.get(each)?.isOAuth ? 'json' : 'problem+json'}`)
        const expected = types.map((type) => [type, { schema, ...(shown.length > 0 && { examples }) }])
        t.strictSame(content, Object.fromEntries(expected), `${name} ${status}`)
        for (const code of codes) {
          t.equal(String(catalogue.get(code)?.status), status, `${name} names ${code} under its status`)
        }
      }
      if (operation['x-authz'] !== 'public') t.ok(errors.includes('401'), `${name} can answer 401`)
      if (operation.requestBody) t.ok(errors.includes('415') && errors.includes('413'), `${name} reads a body`)
    }
  })
  t.test('says how long every list can be', async (t) => {
    const lists = [...nodesOf(document)].filter(({ node }) => [node.type].flat().includes('array') || 'items' in node)
    t.ok(lists.length > 8)
    for (const { node, way } of lists) t.type(node.maxItems, 'number', way.join('/'))
  })
  t.test('has patterns that the regular expressions of other languages read', async (t) => {
    // no group but (?:…) or (…), no escape but of ASCII: Go and Rust look nowhere around, PHP knows no \u, Python no \p
    const portable = /^(?:[\x20-\x7e])*$/
    const escapes = /^(?:[dwsnrt]|x[0-7][0-9a-f]|[^A-Za-z0-9])/
    const patterns = [...nodesOf(document)].flatMap(({ node }) =>
      typeof node.pattern === 'string' ? node.pattern : []
    )
    t.ok(patterns.length > 20)
    for (const pattern of new Set(patterns)) {
      t.match(pattern, portable)
      t.notMatch(pattern, /\(\?(?!:)/)
      for (const [, rest = ''] of pattern.matchAll(/\\([\s\S].{0,2})/g)) t.match(rest, escapes, pattern)
    }
  })
  t.test('has names that do not collide in the languages of clients', async (t) => {
    const names = Object.keys(document.components.schemas)
    // Go makes a constructor NewX of each X
    t.strictSame(
      names.filter((name) => names.includes(name.replace(/^New/, '')) && name.startsWith('New')),
      []
    )
    // and one constant of each word of an enum that has a name, whichever enum it is
    const words = Object.values(document.components.schemas).flatMap(({ enum: each }) => (each as string[]) ?? [])
    t.ok(words.length > 5)
    t.strictSame([...words].sort(), [...new Set(words)].sort())
  })
  t.test('has no null among the words of an enum', async (t) => {
    const enums = [...nodesOf(document)].filter(({ node }) => Array.isArray(node.enum))
    t.ok(enums.length > 8)
    for (const { node, way } of enums) {
      t.type(node.type, 'string', way.join('/'))
      t.notOk((node.enum as unknown[]).includes(null), way.join('/'))
    }
    t.match(document.components.schemas.TenantPatch, {
      properties: {
        settings: { properties: { locale: { anyOf: [{ $ref: '#/components/schemas/Locale' }, { type: 'null' }] } } }
      }
    })
  })
  t.test('documents the headers of limits at every reply of what is limited', async (t) => {
    const limited = operations.filter(({ operation }) => operation.responses[429])
    t.ok(limited.length > 50)
    for (const { name, operation } of operations) {
      for (const [status, { headers = {} }] of Object.entries(operation.responses)) {
        const expected = operation.responses[429] && status !== '408' && status !== '431'
        t.equal('RateLimit' in headers && 'RateLimit-Policy' in headers, Boolean(expected), `${name} ${status}`)
      }
    }
  })
  t.test('lists exactly the codes of the catalogue', async (t) => {
    const problem = document.components.schemas.Problem as { properties: { code: { enum: string[] } } }
    t.strictSame([...problem.properties.code.enum].sort(), [...catalogue.keys()].sort())
  })
  t.test('describes the four members of a token reply as always there', async (t) => {
    const reply = document.components.schemas.TokenReply as { required: string[] }
    t.strictSame([...reply.required].sort(), ['access_token', 'expires_in', 'refresh_token', 'token_type'])
  })
  t.test('says the same as YAML', async (t) => {
    const reply = await send(app, 'localhost', '/api/v1/openapi.yaml')
    t.equal(reply.statusCode, 200)
    t.match(reply.headers['content-type'], /^application\/yaml(?:;|$)/)
    t.strictSame(parse(reply.body), document)
  })
  t.test('is for everybody, on the host of a tenant too, and says so again', async (t) => {
    t.strictSame(await readDocument(app), document)
    t.match((await send(app, 'localhost', '/api/v1/openapi.json')).headers['content-type'], /^application\/json/)
  })
})

t.test('the page that shows it', async (t) => {
  const app = await startApp(t)
  let url = '/api/v1/docs'
  let page = await send(app, 'localhost', url)
  for (let hops = 0; hops < 3 && page.statusCode >= 300 && page.statusCode < 400; hops++) {
    url = new URL(String(page.headers.location), `http://localhost${url}`).pathname
    page = await send(app, 'localhost', url)
  }
  const csp = String(page.headers['content-security-policy'])

  t.test('loads, with a policy that lets nothing else in', async (t) => {
    t.equal(page.statusCode, 200)
    t.match(page.headers['content-type'], /^text\/html/)
    t.match(csp, "default-src 'none'")
    t.match(csp, "frame-ancestors 'none'")
    t.notMatch(/script-src[^;]*/.exec(csp)?.[0], /unsafe|\*|https?:/)
    t.match(page.headers, { 'x-content-type-options': 'nosniff', 'x-frame-options': 'DENY' })
  })
  t.test('has every script and style that it names, from this server', async (t) => {
    const base = `http://localhost${url.endsWith('/') ? url : url.replace(/[^/]*$/, '')}`
    const assets = [...page.body.matchAll(/<(?:script|link|img)\b[^>]*?\b(?:src|href)="([^"]+)"/g)].map(
      ([, asset = '']) => new URL(asset, base)
    )
    t.ok(assets.length >= 3)
    const answers: string[] = []
    for (const { host, pathname } of assets) {
      t.equal(host, 'localhost')
      answers.push(`${pathname} ${(await send(app, 'localhost', pathname)).statusCode}`)
    }
    t.strictSame(
      answers.filter((answer) => !answer.endsWith(' 200')),
      []
    )
  })
  t.test('has no script in itself, which its own policy would refuse', async (t) => {
    for (const [, attributes = '', text = ''] of page.body.matchAll(/<script\b([^>]*)>([\s\S]*?)<\/script>/g)) {
      t.match(attributes, /\bsrc=/)
      t.equal(text.trim(), '')
    }
  })
  t.test('reads this document', async (t) => {
    const json = await send(app, 'localhost', '/api/v1/docs/json')
    t.equal(json.statusCode, 200)
    t.strictSame(json.json(), await readDocument(app))
  })
})

t.test('a route that does not say who may call it stops the boot', async (t) => {
  const database = await createTestDatabase(t)
  const boot = async (plugin: (app: FastifyInstance) => void) => {
    const app = buildApp(readConfig(testEnvironment(database)))
    app.register(async (scope) => plugin(scope as unknown as FastifyInstance), { prefix: '/api/v1/planted' })
    try {
      await app.ready()
      return 'it started'
    } catch (err) {
      return (err as Error).message
    } finally {
      await app.close()
    }
  }
  const handler = async () => 'nobody asked'
  t.match(await boot((app) => app.get('/', handler)), /GET \/api\/v1\/planted.*access/)
  t.match(await boot((app) => app.post('/a', { config: {} }, handler)), /POST \/api\/v1\/planted\/a.*access/)
  t.match(
    await boot((app) => app.route({ method: ['PUT', 'DELETE'], url: '/b', config: { host: 'any' }, handler })),
    /PUT,DELETE \/api\/v1\/planted\/b.*access/
  )
  t.match(
    await boot((app) => {
      app.register(async (inner) => void inner.get('/', handler), { prefix: '/deeper' })
    }),
    /GET \/api\/v1\/planted\/deeper.*access/
  )
  t.equal(await boot((app) => app.get('/', { config: { access: 'public' } }, handler)), 'it started', 'the control')
})

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import t from 'tap'
import { readText, root } from './harness.ts'

/*
 * Each flow of signing in is drawn, has a helper of the client, and has whole examples in the OpenAPI document. The table in
 * docs/sign-in.md lists them.
 */

type Node = Record<string, unknown>
type Media = { schema?: Node; examples?: Record<string, Node> }
type Operation = {
  operationId: string
  requestBody?: { content: Record<string, Media> }
  responses: Record<string, { content?: Record<string, Media> }>
}
const document = JSON.parse(readText('client/openapi.json')) as { paths: Record<string, Record<string, Operation>> }

type Flow = { name: string; page: string; anchor: string; requests: string[]; helpers: string[] }
const codeIn = (cell: string) => [...cell.matchAll(/`([^`]+)`/g)].map(([, text = '']) => text)

/** The rows of the table. */
function readFlows(): Flow[] {
  const [, table = ''] = /## All flows\n(.*?)\n## /s.exec(readText('docs/sign-in.md')) ?? []
  const rows = [...table.matchAll(/^\| (.+?) \| \[.*?\]\((\S*?)#(\S+)\) \| (.+?) \| (.+?) \|$/gm)]
  return rows.map(([, name = '', page, anchor = '', requests = '', helpers = '']) => ({
    name,
    page: `docs/${page || 'sign-in.md'}`,
    anchor,
    requests: codeIn(requests),
    helpers: codeIn(helpers)
  }))
}
const flows = readFlows()

const operationOf = (request: string): Operation | undefined => {
  const [method = '', path = ''] = request.split(' ')
  return document.paths[`/api/v1${path}`]?.[method.toLowerCase()]
}

/** The text below a heading, up to the next heading of its level or a higher one. */
function sectionOf(page: string, anchor: string): string {
  const text = readText(page)
  for (const { 0: line, 1: marks = '', 2: heading = '', index } of text.matchAll(/^(#+) (.+)$/gm)) {
    if (
      heading
        .toLowerCase()
        .replaceAll(/[^\w\s-]/g, '')
        .replaceAll(' ', '-') !== anchor
    )
      continue
    const rest = text.slice(index + line.length)
    return rest.split(new RegExp(`^#{1,${marks.length}} `, 'm'), 1)[0] as string
  }
  return ''
}
const drawingsIn = (text: string) =>
  [...text.matchAll(/```mermaid\n(sequenceDiagram.*?)```/gs)].map(([, each = '']) => each)

/** Whether a drawing has the request, with any value in the place of a parameter. */
const shows = (drawing: string, request: string): boolean =>
  new RegExp(`${request.replaceAll(/\{\w+\}/g, '(?:\\{\\w+\\}|[\\w-]+)')}(?![\\w/-])`).test(drawing)

/** The operations that are part of signing in. Lists and single rows can be read without a drawing. */
const signIn = /^\/api\/v1\/(auth\/|users\/me\/(mfa|passkeys|identities|email)|invitations\/accept|domains|enforcement)/
const others = new Map([
  ['getToken', 'lets a program in'],
  ['register', 'begins an agency'],
  ['logout', 'ends a session'],
  ['switchTenant', 'goes on in another agency'],
  ['renamePasskey', 'changes a name'],
  ['removeDomain', 'removes a row'],
  ['removeBreakGlassOwner', 'removes a row']
])

t.test('every operation of signing in belongs to a flow', async (t) => {
  t.ok(flows.length > 15, `${flows.length} flows`)
  const listed = new Set(flows.flatMap(({ requests }) => requests.map((each) => operationOf(each)?.operationId)))
  for (const { name, requests } of flows) {
    for (const request of requests) t.ok(operationOf(request), `${name}: ${request} is an operation`)
  }
  const needed = Object.entries(document.paths)
    .filter(([path]) => signIn.test(path))
    .flatMap(([path, item]) => Object.entries(item).map(([method, { operationId }]) => ({ path, method, operationId })))
    .filter(({ path, method }) => !['get', 'head'].includes(method) || path.includes('{provider}'))
  for (const { operationId, method, path } of needed.filter((each) => each.method !== 'head')) {
    t.equal(listed.has(operationId), !others.has(operationId), `${method} ${path}`)
  }
})

t.test('every flow is drawn, for a web page and for a mobile app', async (t) => {
  for (const { name, page, anchor, requests } of flows) {
    const drawings = drawingsIn(sectionOf(page, anchor)).join('\n')
    t.match(drawings, 'sequenceDiagram', `${name}: ${page}#${anchor}`)
    for (const request of requests) t.ok(shows(drawings, request), `${name}: ${request}`)
    const clients = [...drawings.matchAll(/^ +(?:participant|actor) \w+ as (.+)$/gm)].map(([, each = '']) => each)
    t.ok(
      clients.some((each) => /\bapp\b/i.test(each)),
      `${name}: an app has a part`
    )
    const alone = anchor === 'in-a-mobile-app'
    t.equal(
      clients.some((each) => /\bpage\b/i.test(each)),
      !alone,
      `${name}: and a page has`
    )
  }
})

t.test('every flow has a helper of the client, which sends its requests and is tried', async (t) => {
  const tests = readdirSync(join(root, 'test')).filter((name) => /^client-.*\.test\.ts$/.test(name))
  const tried = tests.map((name) => readText(`test/${name}`)).join('\n')
  const sources = ['client', 'factors', 'proofs'].map((name) => readText(`client/src/${name}.ts`)).join('\n')
  const plain = /^(GET|POST|PUT|PATCH|DELETE)$/
  for (const { name, requests, helpers } of flows) {
    t.ok(helpers.length > 0, name)
    for (const helper of helpers.filter((each) => !plain.test(each))) {
      const declared = new RegExp(`^(    |export )(async )?(function )?${helper}(\\(|: )`, 'm')
      t.match(sources, declared, `${name}: ${helper}`)
      t.match(tried, new RegExp(`\\b${helper}\\(`), `${name}: ${helper} is tried`)
    }
    if (helpers.every((each) => plain.test(each))) continue
    for (const request of requests) {
      const [method, path = ''] = request.split(' ')
      // a browser follows the address that a helper has made, and a session refreshes itself
      if (path.includes('{provider}') || path === '/auth/refresh') continue
      t.ok(sources.includes(`.${method}('/api/v1${path}'`), `${name}: ${request}`)
    }
  }
})

/** Puts schemas in the place of references. */
function inlined(node: unknown): unknown {
  if (Array.isArray(node)) return node.map(inlined)
  if (typeof node !== 'object' || node === null) return node
  const { $ref } = node as { $ref?: string }
  if ($ref !== undefined) {
    const found = $ref
      .slice(2)
      .split('/')
      .reduce<unknown>((at, key) => (at as Node)[key], document)
    return inlined(found)
  }
  return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, inlined(value)]))
}

/** The example that a schema and its members make together. Undefined: it has none, or a member has none. */
function exampleOf(schema: Node): unknown {
  const { examples, enum: values, const: value, type, properties, items, anyOf } = schema
  if (Array.isArray(examples)) return examples[0]
  if (Array.isArray(values)) return values[0]
  if (value !== undefined) return value
  if (Array.isArray(anyOf)) return exampleOf(anyOf[0] as Node)
  if (type === 'array') {
    const one = exampleOf(items as Node)
    return one === undefined ? undefined : [one]
  }
  if (type === 'boolean') return true
  if (type === 'null') return null
  if (properties === undefined) return undefined
  const required = (schema.required ?? []) as string[]
  const members = Object.entries(properties as Record<string, Node>).map(
    ([name, each]) => [name, exampleOf(each)] as const
  )
  if (members.some(([name, each]) => each === undefined && required.includes(name))) return undefined
  return Object.fromEntries(members.filter(([, each]) => each !== undefined))
}

t.test('every request and every reply of a flow has an example that is valid', async (t) => {
  const ajv = new Ajv2020({ strict: false, allErrors: true })
  addFormats.default(ajv).addFormat('web-origin', true)
  const check = (schema: Node, value: unknown, title: string) => {
    const validate = ajv.compile(schema)
    t.ok(value !== undefined && validate(value), `${title} ${JSON.stringify(value)} ${ajv.errorsText(validate.errors)}`)
  }
  const requests = [...new Set(flows.flatMap(({ requests }) => requests))]
  const refusals = new Set<string>()
  for (const request of requests) {
    const { requestBody, responses } = operationOf(request) as Operation
    const body = requestBody?.content['application/json']?.schema
    if (body) {
      const schema = inlined(body) as Node
      check(schema, exampleOf(schema), `${request}: the request`)
    }
    for (const [status, { content = {} }] of Object.entries(responses)) {
      const reply = content['application/json']?.schema
      if (reply && status.startsWith('2')) {
        const schema = inlined(reply) as Node
        check(schema, exampleOf(schema), `${request}: the reply ${status}`)
      }
      const { schema: problem, examples = {} } = content['application/problem+json'] ?? {}
      for (const [code, example] of Object.entries(inlined(examples) as Record<string, { value: Node }>)) {
        refusals.add(code)
        t.match(example.value, { code, status: Number(status) }, `${request}: ${code}`)
        check(inlined(problem) as Node, example.value, `${request}: ${code}`)
      }
    }
  }
  const carrying = ['mfa_required', 'provider_required', 'enforcement_not_ready', 'domain_not_proven']
  for (const code of carrying) t.ok(refusals.has(code), `what ${code} carries is shown`)
})

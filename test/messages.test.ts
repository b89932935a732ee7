import { Ajv } from 'ajv'
import addFormats from 'ajv-formats'
import t from 'tap'
import { requireFileType } from '../src/files/file-types.ts'
import { errorMessage, messageKeyword } from '../src/http/field-errors.ts'
import { createTenant, password, post, send, startApp } from './harness.ts'

/*
 * The messages of a refusal are for people who have not read the schema: sentences, and all at once.
 */

type Node = Record<string, unknown>

/** Every object in a document, with its path. */
function* nodesOf(node: unknown, way: string): Generator<{ node: Node; way: string }> {
  if (node === null || typeof node !== 'object') return
  if (!Array.isArray(node)) yield { node: node as Node, way }
  for (const [key, child] of Object.entries(node)) if (key !== 'examples') yield* nodesOf(child, `${way}/${key}`)
}

/** Words of JSON Schema, and regular expressions. They must not occur in a message. */
const jargon = /must match|must NOT|pattern|regex|format|[\^$\\]|\[\w-|\{\d/

t.test('the OpenAPI document', async (t) => {
  const app = await startApp(t)
  const nodes = [...nodesOf(app.swagger(), '')]

  t.test('has a sentence for each pattern', (t) => {
    const patterns = nodes.filter(({ node }) => typeof node.pattern === 'string')
    t.ok(new Set(patterns.map(({ node }) => node.pattern)).size >= 8)
    for (const { node, way } of patterns) {
      const said = errorMessage({ keyword: 'pattern', params: { pattern: node.pattern }, parentSchema: node })
      t.equal(said, node[messageKeyword], way)
      t.match(said, /^must be .{8}/, way)
      t.notMatch(said, jargon, way)
    }
    t.end()
  })
  t.test('has a sentence for each format that a client can miss', (t) => {
    // of numbers, of bytes, and of what the server alone writes
    const others = ['int64', 'binary', 'uri', 'uri-reference']
    const unsaid = errorMessage({ keyword: 'format', params: { format: 'none' } })
    const formats = nodes.filter(({ node }) => typeof node.format === 'string' && !others.includes(node.format))
    t.ok(new Set(formats.map(({ node }) => node.format)).size >= 4)
    for (const { node, way } of formats) {
      const said = errorMessage({ keyword: 'format', params: { format: node.format }, parentSchema: node })
      t.not(said, unsaid, `${way}: ${node.format}`)
      t.notMatch(said, jargon, way)
    }
    t.end()
  })
  t.test('has no keyword whose failure is left to the words of the validator', (t) => {
    const samples: Record<string, [schema: Node, value: unknown]> = {
      minLength: [{ minLength: 2 }, 'a'],
      maxLength: [{ maxLength: 1 }, 'ab'],
      minimum: [{ minimum: 1 }, 0],
      maximum: [{ maximum: 1 }, 2],
      minItems: [{ minItems: 1 }, []],
      maxItems: [{ maxItems: 1 }, [1, 2]],
      uniqueItems: [{ uniqueItems: true }, [1, 1]],
      enum: [{ enum: ['a', null] }, 'b'],
      type: [{ type: ['string', 'null'] }, 1],
      required: [{ required: ['a'] }, {}],
      additionalProperties: [{ additionalProperties: false }, { a: 1 }]
    }
    const ajv = new Ajv({ verbose: true, strict: false })
    addFormats.default(ajv)
    const inputs = nodes.filter(({ way }) => /requestBody|parameters|components.schemas/.test(way))
    const known = [...Object.keys(samples), 'pattern', 'format', 'x-max-bytes', 'x-new-password', 'x-one-line']
    // that say nothing to a validator of requests, or what is in them
    const silent = [
      ...['$ref', 'items', 'properties', 'default', 'description', 'example', 'examples', 'title', 'x-trimmed'],
      ...['x-enum-varnames', messageKeyword]
    ]
    for (const { node, way } of inputs) {
      const isSchema = typeof node.type === 'string' || Array.isArray(node.type)
      if (!isSchema) continue
      for (const keyword of Object.keys(node)) t.ok(known.concat(silent).includes(keyword), `${way}: ${keyword}`)
    }
    for (const [keyword, [schema, value]] of Object.entries(samples)) {
      const validate = ajv.compile(schema)
      t.notOk(validate(value), keyword)
      const [error] = validate.errors ?? []
      if (!error) continue
      t.equal(error.keyword, keyword)
      t.not(errorMessage(error), error.message, keyword)
      t.notMatch(errorMessage(error), jargon, keyword)
    }
    t.end()
  })
})

t.test('a refusal', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const register = (more: object) =>
    send(
      app,
      'localhost',
      post('/auth/register', {
        ...{ tenant: { name: 'Beta', slug: 'beta' }, name: 'Ada', email: 'ada@beta.example', password },
        ...more
      })
    )

  t.test('speaks in sentences, each once', async (t) => {
    const reply = await register({ tenant: { name: '', slug: 'A_' }, email: 'ada', extra: 1 })
    t.same(reply.json().errors, [
      { path: '/body/extra', message: 'is not known here' },
      { path: '/body/tenant/name', message: 'must not be empty' },
      { path: '/body/tenant/slug', message: 'must have at least 3 characters' },
      {
        path: '/body/tenant/slug',
        message:
          'must be 3 to 40 lower-case letters, digits and hyphens, begin with a letter and end with a letter or digit'
      },
      { path: '/body/email', message: 'must be an e-mail address' }
    ])
    t.equal(reply.json().detail, 'body/extra is not known here')
    const id = await acme.send('/api/v1/files/1')
    t.same(id.json().errors, [{ path: '/params/id', message: 'must be a UUID in lower case' }])
    const role = await acme.send(post('/invitations', { email: 'a@b.example', role: 'owner' }))
    t.same(role.json().errors, [{ path: '/body/role', message: 'must be one of admin, member, viewer' }])
    const bare = await send(app, 'localhost', {
      ...post('/auth/login', '1'),
      headers: { 'content-type': 'application/json' }
    })
    t.equal(bare.json().detail, 'body must be an object')
    const key = await acme.send({
      ...post('/tenants', { name: 'B', slug: 'beta' }),
      headers: { 'idempotency-key': '' }
    })
    t.match(key.json().errors, [{ path: '/headers/idempotency-key', message: /^must be 1 to 255 visible/ }])
    const upload = { method: 'POST', url: '/api/v1/files/resumable' } as const
    for (const [key, value] of [
      ['purpose', 'A'],
      ['sha256', 'x'],
      ['filetype', 'x']
    ]) {
      const headers = { 'upload-length': '1', 'upload-metadata': `${key} ${btoa(value as string)}` }
      const { detail } = (await acme.send({ ...upload, headers })).json()
      t.match(detail, `headers/upload-metadata ${key} must be `)
      t.notMatch(detail, jargon)
    }
  })
  t.test('lists a password that is not acceptable beside all else', async (t) => {
    const passwords: [password: string, message: string][] = [
      ['short', 'must have at least 12 characters'],
      ['x'.repeat(129), 'must have at most 128 characters'],
      ['q1w2e3r4t5y6', 'is one of the commonest passwords'],
      ['ada@beta.example', 'must not be your own e-mail or name']
    ]
    for (const [password, message] of passwords) {
      const { errors } = (await register({ password, name: 1 })).json()
      t.same(errors, [
        { path: '/body/name', message: 'must be a string' },
        { path: '/body/password', message }
      ])
      t.same((await register({ password })).json().errors, [{ path: '/body/password', message }])
    }
    const change = await acme.send(post('/users/me/password', { current_password: '', new_password: 'short' }))
    t.same(change.json().errors, [
      { path: '/body/current_password', message: 'must not be empty' },
      { path: '/body/new_password', message: 'must have at least 12 characters' }
    ])
    const signIn = await send(app, 'localhost', post('/auth/login', { email: 'a', password: 'é'.repeat(600) }))
    t.same(signIn.json().errors, [
      { path: '/body/email', message: 'must be an e-mail address' },
      { path: '/body/password', message: 'must have at most 1024 bytes' }
    ])
  })
  t.test('of what only the database finds names a part of the request too', async (t) => {
    const { errors } = (await acme.send('/api/v1/audit-events?from=2026-01-01T00:00:00%2B21:48')).json()
    t.same(errors, [{ path: '/query', message: 'has a character or a time that cannot be stored' }])
  })
  t.test('lists origins beside all else', async (t) => {
    const payload = {
      name: '',
      settings: { allowed_origins: ['https://a.example', 'a.example', 'https://b.example/'] }
    }
    const { errors } = (await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload })).json()
    t.match(errors, [
      { path: '/body/name' },
      { path: '/body/settings/allowed_origins/1', message: /^must be an origin such as/ },
      { path: '/body/settings/allowed_origins/2', message: /^must be an origin such as/ }
    ])
  })
  t.test('of a file names what it was taken for, and nothing that it is', async (t) => {
    const detailOf = async (content: string, name: string, type: string | undefined, found: string | undefined) => {
      const refusal = await requireFileType(Buffer.from(content), name, type, async () => found).catch((err) => err)
      return refusal.options.detail
    }
    const pdf = ['%PDF-1.7', 'application/pdf'] as const
    t.equal(await detailOf('hello', 'a', 'application/pdf', undefined), 'what is in the file is not application/pdf')
    t.equal(await detailOf('hello', 'a.pdf', undefined, undefined), 'what is in the file is not what .pdf stands for')
    t.equal(await detailOf(pdf[0], 'a.png', pdf[1], pdf[1]), 'what is in the file is not what .png stands for')
    t.equal(
      await detailOf('hello', 'a.pdf', 'image/png', undefined),
      'what is in the file is not image/png, and not what .pdf stands for'
    )
  })
})

import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import type { FastifyInstance, RouteOptions } from 'fastify'

const root = join(import.meta.dirname, '..')

type Media = { schema?: unknown }
type Validate = ReturnType<Ajv2020['compile']>
type Document = {
  paths: Record<
    string,
    Record<
      string,
      { responses: Record<string, { content?: Record<string, Media>; headers?: Record<string, unknown> }> }
    >
  >
}

/**
 * What clients act on. A reply that has one of them must say so in the document. Not `DPoP-Nonce`: any reply to a proof may
 * have a new one, which the security scheme says.
 */
const documentedHeaders = [
  ...['RateLimit', 'RateLimit-Policy', 'Retry-After', 'Location', 'ETag', 'Accept-Ranges', 'Content-Range'],
  ...['Content-Disposition', 'WWW-Authenticate', 'Idempotency-Replayed', 'Deprecation', 'Sunset', 'Link']
]

/** The schemas of a document, by their JSON pointer. Each is compiled once, when the first reply needs it. */
type Schemas = (pointer: string) => Validate
type Contract = { document: Document; schemaAt: Schemas }

/** The documents of this process, by what their routes declare: most files start the same application again and again. */
const contracts = new Map<string, Contract>()

function contractOf(app: FastifyInstance, routes: RouteOptions[]): Contract {
  const declared = routes.map(({ method, url, schema, config }) => [method, url, schema, config])
  const key = createHash('sha256')
    .update(JSON.stringify([root, declared]))
    .digest('hex')
  let contract = contracts.get(key)
  if (!contract) {
    const document = documentOf(app, key)
    contract = { document, schemaAt: compileLazily(document) }
    contracts.set(key, contract)
  }
  return contract
}

/** Generates the document, unless another process of this run of tests has done so. */
function documentOf(app: FastifyInstance, key: string): Document {
  const generate = () => app.swagger() as unknown as Document
  if (process.env.TEST_DIR === undefined) return generate()
  const folder = join(process.env.TEST_DIR, 'contracts')
  const file = join(folder, `${key}.json`)
  if (existsSync(file)) return JSON.parse(readFileSync(file, 'utf8'))
  const document = generate()
  mkdirSync(folder, { recursive: true })
  const unfinished = `${file}.${process.pid}`
  writeFileSync(unfinished, JSON.stringify(document))
  renameSync(unfinished, file)
  return document
}

function compileLazily(document: Document): Schemas {
  // test/openapi.test.ts checks the schemas themselves, which in each process would cost more than all other work on them
  const ajv = new Ajv2020({ strict: false, allErrors: true, validateSchema: false })
  addFormats.default(ajv).addFormat('web-origin', true)
  ajv.addSchema(document, 'openapi')
  const compiled = new Map<string, Validate>()
  return (pointer) => {
    const known = compiled.get(pointer) ?? ajv.compile({ $ref: `openapi#/${pointer}` })
    compiled.set(pointer, known)
    return known
  }
}

const errorsText = ({ errors }: Validate) => (errors ?? []).map((e) => `${e.instancePath} ${e.message}`).join(', ')

/**
 * Checks every reply of the application against its own OpenAPI document: status, headers, content type and body.
 * Returns a list that receives each difference. The test fails at its end if the list is not empty.
 *
 * Must be called before `ready()`.
 */
export function watchContract(app: FastifyInstance): string[] {
  const faults: string[] = []
  const routes: RouteOptions[] = []
  let check: ReturnType<typeof prepare> | undefined

  function prepare() {
    const { document, schemaAt } = contractOf(app, routes)
    const problemSchema = schemaAt('components/schemas/Problem')
    const pointerPart = (text: string) => encodeURIComponent(text.replaceAll('~', '~0').replaceAll('/', '~1'))

    return (method: string, route: string | undefined, status: number, sent: string[], type: string, body: string) => {
      // RFC 6749, 5.2, wants JSON of the token endpoint's own errors
      const oauth = route === '/api/v1/auth/token' && type.startsWith('application/json') && 'error' in JSON.parse(body)
      const problem = oauth || type.startsWith('application/problem+json')
      if (status >= 400 && !problem) faults.push(`${method} ${route}: ${status} as ${type}`)
      if (problem && !problemSchema(JSON.parse(body)))
        faults.push(`${method} ${route}: ${status} ${errorsText(problemSchema)} ${body}`)
      // a refused method is no operation of the document
      if (status === 405) return
      const path = route?.replaceAll(/:(\w+)/g, '{$1}')
      const operation = path === undefined ? undefined : document.paths[path]?.[method.toLowerCase()]
      if (!operation || path === undefined) return
      const response = operation.responses[status]
      if (!response) return void faults.push(`${method} ${route}: ${status} is not documented: ${body.slice(0, 200)}`)
      for (const name of documentedHeaders) {
        if (sent.includes(name.toLowerCase()) && !(name in (response.headers ?? {})))
          faults.push(`${method} ${route}: ${name} of ${status} is not documented`)
      }
      const media = type.split(';', 1)[0] as string
      if (body === '' && !response.content) return
      if (!response.content?.[media])
        return void faults.push(`${method} ${route}: ${status} as ${media} is not documented`)
      if (problem || media !== 'application/json') return
      const pointer = ['paths', path, method.toLowerCase(), 'responses', String(status), 'content', media, 'schema']
      const matches = schemaAt(pointer.map(pointerPart).join('/'))
      if (!matches(JSON.parse(body))) faults.push(`${method} ${route}: ${status} ${errorsText(matches)} ${body}`)
    }
  }

  app.addHook('onRoute', (route) => void routes.push(route))
  app.addHook('onSend', async (request, reply, payload) => {
    if (request.method === 'HEAD' || request.method === 'OPTIONS' || typeof payload === 'object') return
    const { url, schema } = request.routeOptions as { url?: string; schema?: { hide?: boolean } }
    if (schema?.hide) return
    check ??= prepare()
    const sent = Object.keys(reply.getHeaders())
    const type = String(reply.getHeader('content-type') ?? '')
    check(request.method, url, reply.statusCode, sent, type, String(payload ?? ''))
  })
  return faults
}

import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import type { FastifyInstance } from 'fastify'

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

const limitHeaders = ['RateLimit', 'RateLimit-Policy']

/** The schemas of a document, by their JSON pointer. Each is compiled once, when the first reply needs it. */
type Schemas = (pointer: string) => Validate

/** The last document of this process: most files start the same application again and again. */
let last: { text: string; schemas: Schemas } | undefined

function schemasOf(document: Document): Schemas {
  const text = JSON.stringify(document)
  if (last?.text !== text) last = { text, schemas: compileLazily(document) }
  return last.schemas
}

function compileLazily(document: Document): Schemas {
  const ajv = new Ajv2020({ strict: false, allErrors: true })
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
  let check: ReturnType<typeof prepare> | undefined

  function prepare() {
    const document = app.swagger() as unknown as Document
    const schemaAt = schemasOf(document)
    const problemSchema = schemaAt('components/schemas/Problem')
    const pointerPart = (text: string) => encodeURIComponent(text.replaceAll('~', '~0').replaceAll('/', '~1'))

    return (method: string, route: string | undefined, status: number, sent: string[], type: string, body: string) => {
      const problem = type.startsWith('application/problem+json')
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
      for (const name of limitHeaders) {
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

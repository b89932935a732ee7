import { readFileSync } from 'node:fs'
import swagger from '@fastify/swagger'
import type { TSchema } from '@sinclair/typebox'
import fp from 'fastify-plugin'
import { proofNonceHeader, proofScheme, withProof } from '../../src/auth/dpop/documentation.ts'
import { type Access, roles, roleTable } from '../../src/auth/roles.ts'
import { describeWebhooks } from '../../src/events/event-schemas.ts'
import { acceptedTypes } from '../../src/http/media-types.ts'
import { isNullableEnum, splitNullableEnum } from '../../src/http/nullable-enums.ts'
import { fieldErrorSchema, problemExamples, problemSchema } from '../../src/http/problem-schemas.ts'
import { catalogue, mediaTypeOf, type ProblemKind } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The problem codes with which this operation may answer, besides the ones of every operation. */
    problems?: string[]
    /**
     * A body that the handler reads by itself. `anyType`: any media type is accepted, and `type` is the one in the
     * document.
     */
    receives?: { type: string; anyType?: boolean; schema: TSchema }
  }
}

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string
}

/** `x-authz` of an operation is the lowest role that may call it, or `public` or `user` (any signed-in person). */
const rolesText = `Roles, highest first; each may do what those below it may:\n\n${roles
  .map((role) => `- \`${role}\`: ${roleTable[role].may}`)
  .join('\n')}`

const anyRoute = [
  'malformed_request',
  'tenant_not_found',
  'request_timeout',
  'unknown_host',
  'headers_too_large',
  'internal_error',
  'unavailable',
  'overloaded'
]
const signedIn = [
  'unauthenticated',
  'invalid_token',
  'token_expired',
  'session_revoked',
  'tenant_mismatch',
  'tenant_suspended'
]
const proven = ['invalid_dpop_proof', 'use_dpop_nonce']

type Schema = Record<string, unknown>

/** Generates the OpenAPI 3.1 document from the schemas and the `config` of the routes. */
export default fp(
  async (app) => {
    await app.register(swagger, {
      openapi: {
        openapi: '3.1.0',
        info: {
          title: 'Aggios API',
          version,
          description:
            'The multi-tenant back end of Aggios. A tenant (agency) lives at its own host, `<slug>.<BASE_DOMAIN>`; on the general host `api.<BASE_DOMAIN>` the tenant comes from the token. Every error is an RFC 9457 problem document with a stable `code`.\n\n' +
            rolesText,
          contact: { name: 'Aggios', url: 'https://aggios.app' },
          license: { name: 'Proprietary', url: 'https://aggios.app' }
        },
        servers: [{ url: '/', description: 'this host' }],
        tags: [
          { name: 'auth', description: 'Sign up, sign in, stay signed in, sign out' },
          { name: 'me', description: 'The signed-in person' },
          { name: 'tenant', description: 'Agencies' },
          { name: 'people', description: 'Members and invitations' },
          { name: 'keys', description: 'API keys: a way in for programs' },
          { name: 'files', description: 'Documents and images' },
          { name: 'audit', description: 'Who did what' },
          { name: 'webhooks', description: 'Events that are sent to servers of an agency' },
          { name: 'events', description: 'What happens, as it happens' },
          { name: 'health', description: 'Whether the service can serve' },
          { name: 'docs', description: 'What you are reading' }
        ],
        components: {
          securitySchemes: { bearer: { type: 'http', scheme: 'bearer', bearerFormat: 'JWT' }, dpop: proofScheme },
          schemas: { Problem: problemSchema as never, FieldError: fieldErrorSchema as never },
          examples: problemExamples,
          headers: headers as never
        },
        webhooks: describeWebhooks() as never
      },
      hideUntagged: false,
      transform({ schema, url, route }) {
        if (!schema || schema.hide) return { schema: { ...schema, hide: true } as never, url }
        const config = route.config ?? {}
        const access = config.access as Access
        const codes = [...anyRoute, ...(config.problems ?? [])]
        if (schema.body || schema.params || schema.querystring) codes.push('validation_failed')
        // also for operations without a body, because a body that is sent is parsed
        if (route.method !== 'GET') codes.push('malformed_json', 'payload_too_large', 'unsupported_media_type')
        if (config.limited !== false) codes.push('rate_limited')
        if (config.receives) codes.push('malformed_request')
        if (access !== 'public') codes.push(...signedIn)
        if (access !== 'public' || config.takesProof) codes.push(...proven)
        if ((access !== 'public' && access !== 'user') || config.reach) codes.push('forbidden')
        return {
          url,
          schema: {
            ...schema,
            consumes: acceptedTypes(route),
            ...(config.receives && { body: config.receives.schema, consumes: [config.receives.type] }),
            ...(config.takesProof && { headers: withProof(schema.headers as object | undefined) }),
            security: schema.security ?? (access === 'public' ? [] : [{ bearer: [] }, { dpop: [] }]),
            'x-authz': access,
            ...(config.permission && config.permission !== 'never' && { 'x-permission': config.permission }),
            response: { ...(schema.response as object), ...problemResponses(codes) }
          } as never
        }
      },
      transformObject: (document) => ('openapiObject' in document ? nameSchemas(document.openapiObject) : {}) as never
    })
  },
  { name: 'openapi', dependencies: ['config'] }
)

/** Examples of the codes whose problems carry more than every problem does. */
function examplesOf(codes: string[]): Schema {
  const shown = codes.filter((code) => code in problemExamples)
  const references = shown.map((code) => [code, { $ref: `#/components/examples/${code}` }])
  return references.length > 0 ? { examples: Object.fromEntries(references) } : {}
}

/** One response a status, with its codes in the description. */
function problemResponses(codes: string[]): Record<number, Schema> {
  const byStatus = new Map<number, ProblemKind[]>()
  for (const code of new Set(codes)) {
    const kind = catalogue.get(code)
    if (!kind) throw new Error(`the catalogue has no ${code}`)
    byStatus.set(kind.status, [...(byStatus.get(kind.status) ?? []), kind])
  }
  return Object.fromEntries(
    [...byStatus].map(([status, each]) => [
      status,
      {
        description: each.map(({ code, title }) => `\`${code}\`: ${title}`).join('  \n'),
        content: Object.fromEntries(
          each.map((kind) => [
            mediaTypeOf(kind),
            { schema: { $ref: '#/components/schemas/Problem' }, ...examplesOf(each.map(({ code }) => code)) }
          ])
        )
      }
    ])
  )
}

/**
 * Moves every schema that has a title into `components`, so that generated clients use our names. Throws when two
 * different schemas have one title.
 */
function nameSchemas(document: Schema): Schema {
  const components = document.components as { schemas: Record<string, Schema> }
  const visit = (node: unknown): unknown => {
    if (Array.isArray(node)) return node.map(visit)
    if (node === null || typeof node !== 'object') return node
    if (isNullableEnum(node)) return visit(splitNullableEnum(node))
    const copy = Object.fromEntries(Object.entries(node).map(([key, value]) => [key, visit(value)])) as Schema
    const { title } = copy
    const isSchema = typeof title === 'string' && (copy.type !== undefined || copy.anyOf !== undefined)
    if (!isSchema) return copy
    const { title: _, ...schema } = copy
    const known = components.schemas[title]
    if (known && JSON.stringify(known) !== JSON.stringify(schema)) throw new Error(`two schemas are called ${title}`)
    components.schemas[title] = schema
    return { $ref: `#/components/schemas/${title}` }
  }
  const paths = visit(document.paths) as Record<string, Record<string, Operation>>
  for (const operation of Object.values(paths).flatMap((path) => Object.values(path))) {
    const { parameters = [], requestBody, responses } = operation
    const limited = responses[429] !== undefined
    const repeatable = parameters.some(({ name }) => name === 'idempotency-key')
    // a HEAD route with an operation id of its own keeps it without the suffix
    operation.operationId = operation.operationId.replace(/-head$/, '')
    // a nullable body is optional
    const body = components.schemas[requestBody?.content['application/json']?.schema?.$ref?.split('/').at(-1) ?? '']
    if (requestBody && Array.isArray(body?.type) && body.type.includes('null')) requestBody.required = false
    for (const parameter of parameters) moveExample(parameter)
    for (const [status, response] of Object.entries(responses))
      describeResponse(status, response, { repeatable, limited })
  }
  return { ...document, paths, webhooks: visit(document.webhooks) }
}

/**
 * Moves the example of a parameter into its schema, so that the docs page does not fill the field with it. Only
 * required parameters whose example works as it is keep the example, and an id from an example does not work.
 */
function moveExample(parameter: Parameter): void {
  // tus requires it on every request. The validator must not, because tus answers its absence with 412
  if (parameter.name === 'tus-resumable') parameter.required = true
  const { required, schema, example } = parameter
  if (example === undefined || (required && schema.format !== 'uuid')) return
  delete parameter.example
  parameter.schema = { ...schema, examples: [example] }
}

type Parameter = { name: string; required?: boolean; schema: Schema; example?: unknown }
type Operation = {
  parameters?: Parameter[]
  operationId: string
  requestBody?: { required: boolean; content: Record<string, { schema?: { $ref?: string } }> }
  responses: Record<string, Response>
}
type Response = { description: string; headers?: Schema; content?: Record<string, { schema?: { $ref?: string } }> }

const text = (description: string, example: string): Schema => ({
  description,
  schema: { type: 'string', examples: [example] }
})
const headers = {
  Accept: text('The media types that are taken', 'application/json'),
  'Accept-Encoding': text('How a body may be encoded', 'identity'),
  'Content-Range': text('How many bytes there are', 'bytes */1024'),
  'DPoP-Nonce': text(...proofNonceHeader),
  ETag: text('The version of what was sent, for `If-None-Match` and `If-Match`', '"1.1-441d7c9db9ee"'),
  'Idempotency-Replayed': text('`true` on the reply that is given again', 'true'),
  Location: text(
    'Where the new object is, or where the browser goes on',
    '/api/v1/files/01890a5d-ac96-774b-bcce-b302099a8057'
  ),
  RateLimit: text(
    'How many requests remain of each limit, and in how many seconds it starts anew (structured fields of the IETF draft); left out where a limit is switched off',
    '"user";r=299;t=60'
  ),
  'RateLimit-Policy': text('The limits: `q` requests in `w` seconds', '"user";q=300;w=60'),
  'Retry-After': text('Seconds to wait', '5'),
  'WWW-Authenticate': text(
    'What is wrong with the token (RFC 6750, RFC 9449)',
    'Bearer error="invalid_token", DPoP algs="ES256"'
  )
}
type Header = keyof typeof headers
const headersByStatus: Record<string, Header[]> = {
  302: ['Location'],
  304: ['ETag'],
  401: ['WWW-Authenticate', 'DPoP-Nonce'],
  403: ['WWW-Authenticate'],
  415: ['Accept', 'Accept-Encoding'],
  416: ['Content-Range'],
  429: ['Retry-After'],
  503: ['Retry-After'],
  507: ['Retry-After']
}
/** Schemas of objects that are sent with an ETag, and of new objects whose address is in Location. */
const [tagged, located] = [
  new Set(['User', 'Tenant', 'Webhook', 'WebhookWithSecret', 'IdentityProvider']),
  new Set(['FileMetadata', 'WebhookWithSecret', 'WebhookDelivery', 'IdentityProvider'])
]

/** The statuses of replies that are sent before the request is counted, so that they have no headers of limits. */
const uncounted = ['408', '431']

/** Adds the name of the schema as the description, and the headers that belong to a status. */
function describeResponse(status: string, response: Response, { repeatable = false, limited = false }): void {
  const schema = response.content?.['application/json']?.schema?.$ref?.split('/').at(-1)
  if (response.description === 'Default Response') response.description = schema ?? 'Success'
  const names = [...(headersByStatus[status] ?? [])]
  if (schema !== undefined && tagged.has(schema)) names.push('ETag')
  if (schema !== undefined && located.has(schema) && (status === '201' || status === '202')) names.push('Location')
  if (repeatable && status.startsWith('2')) names.push('Idempotency-Replayed')
  // the first request with the key is still under way
  if (repeatable && status === '409') names.push('Retry-After')
  if (limited && !uncounted.includes(status)) names.push('RateLimit-Policy', 'RateLimit')
  if (names.length === 0) return
  // beside those that the route itself declares
  const shared = names.map((name) => [name, { $ref: `#/components/headers/${name}` }])
  response.headers = { ...response.headers, ...Object.fromEntries(shared) }
}

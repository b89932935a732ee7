import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { parseKey } from '../../src/auth/api-keys/key-format.ts'
import type { KeyReach } from '../../src/auth/api-keys/key-reach.ts'
import { isPermission, type Permission } from '../../src/auth/api-keys/permissions.ts'
import type { AccessClaims } from '../../src/auth/claims.ts'
import {
  invalidClient,
  invalidRequest,
  invalidScope,
  type Problem,
  unsupportedGrantType
} from '../../src/http/problems.ts'
import { KeyToken, TokenRequest } from './schemas.ts'

type Parameters = ReadonlyMap<string, string>
type Credentials = { id: string; key: string }
type KeyClaims = AccessClaims & { key: KeyReach }

/** Access tokens for API keys, by the client credentials grant (RFC 6749, 4.4). */
const clientCredentials: FastifyPluginAsyncTypebox = async (app) => {
  const type = 'application/x-www-form-urlencoded'
  app.addContentTypeParser(type, { parseAs: 'string' }, (_request, body, done) =>
    done(null, new URLSearchParams(body as string))
  )

  app.post(
    '/token',
    {
      config: {
        access: 'public',
        receives: { type, schema: TokenRequest },
        problems: ['invalid_request', 'invalid_scope', 'unsupported_grant_type', 'invalid_client']
      },
      schema: {
        operationId: 'getToken',
        summary: 'A short-lived access token for an API key',
        description:
          'OAuth 2.0 client credentials (RFC 6749, 4.4). The client is an API key: `client_id` is its id and `client_secret` the whole key, by HTTP Basic or in the body. `scope` narrows the permissions. There is no refresh token: ask again. The token ends with the key.',
        tags: ['keys'],
        response: { 200: KeyToken }
      }
    },
    async (request, reply) => {
      const parameters = readParameters(request.body as URLSearchParams)
      requireGrantType(parameters)
      const claims = await authenticate(app, request, readCredentials(request, parameters))
      const permissions = readScope(parameters, claims.key)
      const token = app.tokens.issueForKey({ claims, permissions })
      app.keyUses.note(claims)
      // RFC 6749, 5.1, demands both
      reply.header('cache-control', 'no-store').header('pragma', 'no-cache')
      return { ...token, token_type: 'Bearer' as const, scope: permissions.join(' ') }
    }
  )
}

/** A parameter without a value counts as left out (RFC 6749, 3.2). */
function readParameters(body: URLSearchParams): Parameters {
  const given = [...body].filter(([, value]) => value !== '')
  const parameters = new Map(given)
  if (parameters.size < given.length) throw invalidRequest({ detail: 'a parameter appears twice' })
  return parameters
}

function requireGrantType(parameters: Parameters): void {
  const type = parameters.get('grant_type')
  if (type === undefined) throw invalidRequest({ detail: 'grant_type is missing' })
  if (type !== 'client_credentials') throw unsupportedGrantType()
}

function readCredentials({ headers }: FastifyRequest, parameters: Parameters): Credentials {
  const [, basic] = /^basic ([A-Za-z0-9+/]+=*)$/i.exec(headers.authorization ?? '') ?? []
  if (basic === undefined) return { id: parameters.get('client_id') ?? '', key: parameters.get('client_secret') ?? '' }
  if (parameters.has('client_secret')) throw invalidRequest({ detail: 'the client authenticates in two ways' })
  // both are encoded as in a form (RFC 6749, 2.3.1)
  const [id = '', key = '', ...rest] = Buffer.from(basic, 'base64').toString().split(':').map(decodeFormValue)
  if (rest.length > 0 || (parameters.get('client_id') ?? id) !== id) throw invalidClient()
  return { id, key }
}

const decodeFormValue = (text: string) => new URLSearchParams(`value=${text.replaceAll('&', '%26')}`).get('value') ?? ''

/** Resolves to the claims of the key. Throws `invalid_client`. */
async function authenticate(
  app: FastifyInstance,
  request: FastifyRequest,
  { id, key }: Credentials
): Promise<KeyClaims> {
  if (parseKey(key)?.id !== id) throw invalidClient()
  const known = app.apiKeys.recall(key)
  // asked anew although it is remembered, so that the token can live as long as any other
  const { claims, problem } = known?.problem ? known : await app.apiKeys.lookUp(key)
  if (problem && problem.kind.status >= 500) throw problem
  if (!claims || problem) throw invalidClient(reasonOf(problem))
  const { key: reach } = claims
  if (!reach) throw new TypeError('the claims of a key say what it may do')
  const elsewhere = request.tenant !== undefined && request.tenant.id !== claims.tenant_id
  if (!elsewhere && (reach.allowsFrom?.(request.address ?? '') ?? true)) return { ...claims, key: reach }
  request.denied = claims
  const where = elsewhere ? 'on the host of another agency' : 'from this address'
  throw invalidClient({ detail: `this API key may not be used ${where}` })
}

/** What is wrong with a key that is known. Only its holder comes to see it. */
function reasonOf(problem: Problem | undefined): { detail?: string } {
  if (problem?.kind.code === 'tenant_suspended') return { detail: 'the agency is suspended' }
  return problem?.options.detail === undefined ? {} : { detail: problem.message }
}

/** The permissions that the token is to have, in the order of the request. Throws `invalid_scope`. */
function readScope(parameters: Parameters, { permissions }: KeyReach): Permission[] {
  const scope = parameters.get('scope')
  if (scope === undefined) return [...permissions]
  const wanted = [...new Set(scope.split(' '))]
  return wanted.map((name) => {
    if (!isPermission(name) || !permissions.has(name)) throw invalidScope()
    return name
  })
}

export default clientCredentials

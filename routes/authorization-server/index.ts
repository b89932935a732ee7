import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { permissions } from '../../src/auth/api-keys/permissions.ts'
import { routeNotFound } from '../../src/http/problems.ts'

const Texts = Type.Array(Type.String(), { maxItems: 20 })

const AuthorizationServer = Type.Object(
  {
    issuer: Type.String({ format: 'uri', examples: ['https://api.aggios.example'] }),
    token_endpoint: Type.String({ format: 'uri', examples: ['https://api.aggios.example/api/v1/auth/token'] }),
    token_endpoint_auth_methods_supported: { ...Texts, examples: [['client_secret_basic', 'client_secret_post']] },
    grant_types_supported: { ...Texts, examples: [['client_credentials']] },
    response_types_supported: { ...Texts, description: 'None: there is no authorization endpoint', examples: [[]] },
    scopes_supported: { ...Texts, examples: [['files:read']] },
    service_documentation: Type.String({ format: 'uri', examples: ['https://api.aggios.example/api/v1/docs'] })
  },
  { title: 'AuthorizationServer' }
)

/** Tells OAuth clients where tokens are issued (RFC 8414). */
const authorizationServer: FastifyPluginAsyncTypebox = async (app) => {
  const { apiUrl } = app.config

  app.get(
    '/.well-known/oauth-authorization-server',
    {
      config: { access: 'public', problems: ['route_not_found'] },
      schema: {
        operationId: 'getAuthorizationServer',
        summary: 'Where OAuth clients get tokens',
        description: 'Metadata of RFC 8414, on the general host only: agencies are no issuers.',
        tags: ['keys'],
        response: { 200: AuthorizationServer }
      }
    },
    async (request, reply) => {
      if (request.slug !== undefined) throw routeNotFound()
      reply.header('cache-control', 'public, max-age=3600')
      return {
        issuer: app.tokens.issuer,
        token_endpoint: `${apiUrl}/api/v1/auth/token`,
        token_endpoint_auth_methods_supported: ['client_secret_basic', 'client_secret_post'],
        grant_types_supported: ['client_credentials'],
        response_types_supported: [],
        scopes_supported: [...permissions],
        service_documentation: `${apiUrl}/api/v1/docs`
      }
    }
  )
}

export default authorizationServer

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { NoContent, Registration, TokenReply } from '../schemas.ts'
import clientCredentials from './client-credentials.ts'
import passkeys from './passkeys.ts'
import recovery from './recovery.ts'
import { refresh } from './refresh.ts'
import { register } from './register.ts'
import { Refresh, RegistrationInput, SignIn, SignOut, Switch } from './schemas.ts'
import { signIn } from './sign-in.ts'
import { signOut } from './sign-out.ts'
import { switchTenant } from './switch.ts'

/** Sign up, sign in, stay signed in, sign out. */
const auth: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['auth']
  app.register(recovery)
  app.register(passkeys)
  app.register(clientCredentials)

  app.post(
    '/register',
    {
      config: { access: 'public', throttled: true, takesProof: true, problems: ['slug_taken', 'email_taken'] },
      schema: {
        operationId: 'register',
        summary: 'A new agency with its first owner',
        description:
          'Creates the agency, the account and a session at once. The agency is then at `<slug>.<BASE_DOMAIN>`.',
        tags,
        body: RegistrationInput,
        response: { 201: Registration }
      }
    },
    async (request, reply) => {
      const registration = await register(app, request, reply)
      reply.code(201)
      return registration
    }
  )

  app.post(
    '/login',
    {
      config: {
        access: 'public',
        throttled: true,
        takesProof: true,
        problems: ['invalid_credentials', 'mfa_required', 'provider_required', 'not_a_member', 'tenant_suspended']
      },
      schema: {
        operationId: 'login',
        summary: 'Sign in with e-mail and password',
        description:
          'Signs in to the agency of the host, else to `tenant`, else to the agency used last. An unknown address and a wrong password get the same answer.',
        tags,
        body: SignIn,
        response: { 200: TokenReply }
      }
    },
    (request, reply) => signIn(app, request, reply)
  )

  app.post(
    '/refresh',
    {
      config: {
        access: 'public',
        host: 'suspended',
        takesProof: 'after_token',
        problems: [
          'invalid_refresh_token',
          'refresh_token_reused',
          'session_revoked',
          'tenant_mismatch',
          'tenant_suspended'
        ]
      },
      schema: {
        operationId: 'refresh',
        summary: 'New tokens for a refresh token',
        description:
          'Each use replaces the token. For a short while the same token gives the same successor, in case a reply was lost. A use after that ends the session.',
        tags,
        body: Refresh,
        response: { 200: TokenReply }
      }
    },
    (request, reply) => refresh(app, request, reply)
  )

  app.post(
    '/logout',
    {
      config: {
        access: 'public',
        host: 'suspended',
        takesProof: 'after_token',
        problems: ['unauthenticated', 'invalid_token', 'invalid_refresh_token', 'tenant_mismatch']
      },
      schema: {
        operationId: 'logout',
        summary: 'Sign out',
        description:
          'Ends the session of the bearer token, which may have expired, or of the refresh token. Can be repeated.',
        tags,
        security: [{ bearer: [] }, { dpop: [] }, {}],
        body: SignOut,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await signOut(app, request, reply)
      reply.code(204)
    }
  )

  app.post(
    '/switch',
    {
      config: {
        access: 'user',
        reach: 'person',
        throttled: true,
        takesProof: true,
        problems: ['not_found', 'mfa_required', 'provider_required', 'tenant_suspended']
      },
      schema: {
        operationId: 'switchTenant',
        summary: 'Tokens for another agency of the same person',
        description: 'Opens a session in that agency. The present session stays open.',
        tags,
        body: Switch,
        response: { 200: TokenReply }
      }
    },
    (request) => switchTenant(app, request)
  )
}

export default auth

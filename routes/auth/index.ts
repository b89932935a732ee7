import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { NoContent, Registration, TokenReply } from '../schemas.ts'
import { refresh } from './refresh.ts'
import { register } from './register.ts'
import { Refresh, RegistrationInput, SignIn, SignOut, Switch } from './schemas.ts'
import { signIn } from './sign-in.ts'
import { signOut } from './sign-out.ts'
import { switchTenant } from './switch.ts'

/** Sign up, sign in, stay signed in, sign out. */
const auth: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['auth']

  app.post(
    '/register',
    {
      config: { access: 'public', throttled: true, problems: ['slug_taken', 'email_taken'] },
      schema: {
        operationId: 'register',
        summary: 'A new agency with its first owner',
        description:
          'Makes the agency, the identity and a session at once. The agency then lives at `<slug>.<BASE_DOMAIN>`.',
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
        problems: ['invalid_credentials', 'not_a_member', 'tenant_suspended']
      },
      schema: {
        operationId: 'login',
        summary: 'Sign in with e-mail and password',
        description:
          'To the agency of the host, else to `tenant`, else to the one last used. Unknown addresses and wrong passwords answer alike.',
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
          'Each use replaces the token. When a reply was lost, the same token gives the same successor for a short while; used again later it ends the session.',
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
        problems: ['unauthenticated', 'invalid_token', 'invalid_refresh_token', 'tenant_mismatch']
      },
      schema: {
        operationId: 'logout',
        summary: 'Sign out',
        description:
          'Ends the session of the bearer, which may have expired, or of the refresh token. Can be repeated.',
        tags,
        security: [{ bearer: [] }, {}],
        body: SignOut,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await signOut(app, request)
      reply.code(204)
    }
  )

  app.post(
    '/switch',
    {
      config: { access: 'user', throttled: true, problems: ['not_found', 'tenant_suspended'] },
      schema: {
        operationId: 'switchTenant',
        summary: 'Tokens for another agency of the same person',
        description: 'Opens a session there; the present one goes on.',
        tags,
        body: Switch,
        response: { 200: TokenReply }
      }
    },
    (request) => switchTenant(app, request)
  )
}

export default auth

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { NoContent, TokenReply } from '../schemas.ts'
import { finishAtProvider } from './callback.ts'
import { exchangeCode } from './exchange.ts'
import { beginLinking, finishLinking, listIdentities, removeIdentity } from './identities.ts'
import {
  CodeExchange,
  Identities,
  Identity,
  IdentityId,
  LinkingStart,
  LinkingUrl,
  LinkTicket,
  OfferedProviders,
  OfferQuery,
  ProviderAnswer,
  ProviderKey,
  Redirect,
  SignInStart
} from './schemas.ts'
import { findTenant, startLinking, startSignIn } from './start.ts'

/** Sign-in at Google, GitHub and the own provider of an agency, and the identities of a person there. */
const oauth: FastifyPluginAsyncTypebox = async (app) => {
  const atProvider = ['not_found', 'provider_error', 'provider_timeout']

  app.get(
    '/auth/providers',
    {
      config: { access: 'public' },
      schema: {
        operationId: 'listSignInProviders',
        summary: 'The providers that a sign-in page may offer',
        description:
          'Those for everybody, and the own ones of the agency of the host, else of `tenant`. Where `required_provider` is set, everything else is refused but for break-glass owners.',
        tags: ['auth'],
        querystring: OfferQuery,
        response: { 200: OfferedProviders }
      }
    },
    async (request) => {
      const tenant = await findTenant(app, request, request.query.tenant)
      return app.providers.offer(request, tenant?.id)
    }
  )

  app.get(
    '/auth/oauth/:provider',
    {
      config: {
        access: 'public',
        navigation: true,
        problems: ['invitation_expired', 'tenant_suspended', ...atProvider]
      },
      schema: {
        operationId: 'startSignIn',
        summary: 'Sign in at a provider',
        description:
          'Open it in the browser of the person, not by `fetch`. The person comes back to `redirect_to` within ten minutes, with `code` for `POST /api/v1/auth/oauth/token`, or with `error`, which is a `code` of the problems. Somebody with an `invitation` accepts it in this way.',
        tags: ['auth'],
        params: ProviderKey,
        querystring: SignInStart,
        response: { 302: Redirect }
      }
    },
    async (request, reply) => {
      const location = await startSignIn(app, request, reply)
      reply.code(302).header('location', location)
    }
  )

  app.get(
    '/auth/oauth/:provider/link',
    {
      config: { access: 'public', navigation: true, throttled: true, problems: ['invalid_oauth_state', ...atProvider] },
      schema: {
        operationId: 'continueLinking',
        summary: 'Link an identity, in the browser',
        description: 'The address that `POST /api/v1/users/me/identities` gives.',
        tags: ['auth'],
        params: ProviderKey,
        querystring: LinkTicket,
        response: { 302: Redirect }
      }
    },
    async (request, reply) => {
      const location = await startLinking(app, request, reply)
      reply.code(302).header('location', location)
    }
  )

  app.get(
    '/auth/oauth/:provider/callback',
    {
      // a flow that was begun is needed, and is good once, so its begin is counted and its end is not
      config: { access: 'public', navigation: true, problems: ['invalid_oauth_state'] },
      schema: {
        operationId: 'finishAtProvider',
        summary: 'Where a provider sends people back to',
        description:
          'Only providers lead here. Its address is to be registered at the provider: `<API_URL>/api/v1/auth/oauth/{provider}/callback`.',
        tags: ['auth'],
        params: ProviderKey,
        querystring: ProviderAnswer,
        response: { 302: Redirect }
      }
    },
    async (request, reply) => {
      const location = await finishAtProvider(app, request, reply)
      reply.code(302).header('location', location)
    }
  )

  app.post(
    '/auth/oauth/token',
    {
      config: {
        access: 'public',
        throttled: true,
        takesProof: true,
        problems: [
          ...['invalid_sign_in_code', 'mfa_required', 'provider_required', 'tenant_mismatch', 'tenant_suspended'],
          ...[
            'invitation_expired',
            'invitation_for_another',
            'identity_not_linked',
            'identity_taken',
            'already_a_member'
          ],
          'not_a_member'
        ]
      },
      schema: {
        operationId: 'exchangeSignInCode',
        summary: 'Complete a sign-in at a provider',
        description:
          "Tokens for the code with which the person came back. The code is good once: a second request with its verifier is refused, and ends the session of the first one, because somebody else may have the code. A person with a second factor, or whose agency demands one, is asked for it as after a password. A session through an agency's own provider is good in that agency only. For a sign-in that began with an `invitation`, this accepts it.",
        tags: ['auth'],
        body: CodeExchange,
        response: { 200: TokenReply }
      }
    },
    (request) => exchangeCode(app, request)
  )

  const me = { access: 'user', reach: 'person' } as const
  const tags = ['me']

  app.get(
    '/users/me/identities',
    {
      config: me,
      schema: {
        operationId: 'listIdentities',
        summary: 'The linked sign-ins of this person',
        description: 'The newest first: at most twenty, and one at each own provider of your agencies.',
        tags,
        response: { 200: Identities }
      }
    },
    (request, reply) => {
      reply.header('cache-control', 'private, no-cache')
      return listIdentities(request)
    }
  )

  app.post(
    '/users/me/identities',
    {
      config: { ...me, throttled: true, problems: ['not_found', 'reauthentication_required'] },
      schema: {
        operationId: 'startLinking',
        summary: 'Begin to link a sign-in at a provider',
        description:
          'Send the browser of the person to `url`. The person comes back to `redirect_to` with a code for `POST /api/v1/users/me/identities/confirm`. Needs a sign-in within the last five minutes.',
        tags,
        body: LinkingStart,
        response: { 200: LinkingUrl }
      }
    },
    (request) => beginLinking(app, request)
  )

  app.post(
    '/users/me/identities/confirm',
    {
      config: { ...me, problems: ['invalid_sign_in_code', 'identity_taken', 'conflict'] },
      schema: {
        operationId: 'confirmLinking',
        summary: 'Link a sign-in at a provider',
        description:
          'In the session that began. From now on the person can sign in with it, whatever address it has. The person gets a mail.',
        tags,
        body: CodeExchange,
        response: { 201: Identity }
      }
    },
    async (request, reply) => {
      const identity = await finishLinking(app, request)
      reply.code(201)
      return identity
    }
  )

  app.delete(
    '/users/me/identities/:id',
    {
      config: { ...me, problems: ['not_found', 'last_sign_in_method', 'reauthentication_required'] },
      schema: {
        operationId: 'unlinkIdentity',
        summary: 'Unlink a sign-in at a provider',
        description:
          'Ends every other session, in every agency. The last way to sign in stays. One that is good in a single agency is unlinked in a session of that agency. Needs a sign-in within the last five minutes.',
        tags,
        params: IdentityId,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await removeIdentity(app, request)
      reply.code(204)
    }
  )
}

export default oauth

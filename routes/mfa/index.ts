import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { NoContent, PasskeyRequestOptions } from '../schemas.ts'
import { completeWithNewPasskey, enrollAtSignIn, offerNewPasskey } from './enrollment.ts'
import {
  confirmEnrollment,
  describeFactor,
  reauthenticate,
  removeEnrollment,
  replaceRecoveryCodes,
  startEnrollment
} from './factor.ts'
import passkeys from './passkeys.ts'
import {
  FactorCode,
  FactorProof,
  FactorSecret,
  MfaEnrollment,
  MfaReply,
  MfaSignIn,
  PasskeyCreationOptions,
  PasskeyEnrollment,
  Reauthentication,
  RecoveryCodes,
  SecondFactor
} from './schemas.ts'
import { completeSignIn, offerPasskey } from './sign-in.ts'

/** Second factors: to set one up, to sign in with it, and to prove anew who one is. */
const mfa: FastifyPluginAsyncTypebox = async (app) => {
  const access = 'user'
  const wrong = ['invalid_credentials', 'rate_limited']
  app.register(passkeys)

  app.get(
    '/users/me/mfa',
    {
      config: { access, reach: 'person' },
      schema: {
        operationId: 'getMfa',
        summary: 'The second factors of the signed-in person',
        description: 'Which there are, and how many recovery codes are left.',
        tags: ['me'],
        response: { 200: SecondFactor }
      }
    },
    (request, reply) => {
      reply.header('cache-control', 'private, no-cache')
      return describeFactor(app, request)
    }
  )

  app.post(
    '/users/me/mfa/totp',
    {
      config: { access, reach: 'person', throttled: true, problems: ['reauthentication_required', 'conflict'] },
      schema: {
        operationId: 'startTotp',
        summary: 'Begin to set up a second factor',
        description:
          'The secret is shown once, and becomes a factor when `POST /api/v1/users/me/mfa/totp/confirm` gets a code of it. Until then sign-in is as before, and a further call replaces the secret. Needs a sign-in within the last five minutes.',
        tags: ['me'],
        response: { 200: FactorSecret }
      }
    },
    (request) => startEnrollment(app, request)
  )

  app.post(
    '/users/me/mfa/totp/confirm',
    {
      config: { access, reach: 'person', problems: [...wrong, 'conflict'] },
      schema: {
        operationId: 'confirmTotp',
        summary: 'Set up a second factor',
        description:
          'From now on sign-in asks for a code. Ends every other session, in every agency. The reply has ten recovery codes, which are never shown again.',
        tags: ['me'],
        body: FactorCode,
        response: { 200: RecoveryCodes }
      }
    },
    (request, reply) => confirmEnrollment(app, request, reply)
  )

  app.delete(
    '/users/me/mfa/totp',
    {
      config: {
        access,
        reach: 'person',
        problems: [...wrong, 'invalid_challenge', 'conflict', 'last_break_glass_owner']
      },
      schema: {
        operationId: 'removeTotp',
        summary: 'Remove the authenticator app',
        description:
          'Ends every other session, in every agency. Passkeys stay. An agency that demands a second factor lets a person without one in again when they have set up another one.',
        tags: ['me'],
        body: FactorProof,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await removeEnrollment(app, request, reply)
      reply.code(204)
    }
  )

  app.post(
    '/users/me/mfa/recovery-codes',
    {
      config: { access, reach: 'person', problems: [...wrong, 'invalid_challenge', 'conflict'] },
      schema: {
        operationId: 'renewRecoveryCodes',
        summary: 'New recovery codes',
        description: 'The old ones become invalid.',
        tags: ['me'],
        body: FactorProof,
        response: { 200: RecoveryCodes }
      }
    },
    (request, reply) => replaceRecoveryCodes(app, request, reply)
  )

  const signIn = ['invalid_mfa_token', 'provider_required', 'tenant_mismatch', 'tenant_suspended']

  app.post(
    '/auth/mfa',
    {
      config: {
        access: 'public',
        throttled: true,
        takesProof: true,
        problems: [...signIn, ...wrong, 'invalid_challenge']
      },
      schema: {
        operationId: 'completeSignIn',
        summary: 'Complete a sign-in with a second factor',
        description:
          'After a right password sign-in answers 401 `mfa_required` with an `mfa_token`. With a code of the app, a recovery code or a passkey it becomes a session in the agency that the sign-in chose. A wrong one is 401 `invalid_credentials`, and counts like a wrong password; the token can be used until one succeeds. With a token to enroll the code is the first one of the new secret, and the reply has the recovery codes.',
        tags: ['auth'],
        body: MfaSignIn,
        response: { 200: MfaReply }
      }
    },
    (request, reply) => completeSignIn(app, request, reply)
  )

  app.post(
    '/auth/mfa/totp',
    {
      config: { access: 'public', throttled: true, takesProof: true, problems: signIn },
      schema: {
        operationId: 'enrollAtSignIn',
        summary: 'Set up a second factor at sign-in',
        description:
          'For people whose agency demands a second factor and who have none: sign-in answered `mfa_required` with `enroll`. The secret is shown once; `POST /api/v1/auth/mfa` with its first code completes the sign-in.',
        tags: ['auth'],
        body: MfaEnrollment,
        response: { 200: FactorSecret }
      }
    },
    (request) => enrollAtSignIn(app, request)
  )

  app.post(
    '/auth/mfa/passkey/options',
    {
      config: { access: 'public', throttled: true, takesProof: true, problems: [...signIn, 'conflict'] },
      schema: {
        operationId: 'startPasskeyFactor',
        summary: 'Begin to complete a sign-in with a passkey',
        description:
          'What `navigator.credentials.get` needs. `POST /api/v1/auth/mfa` takes what it returns, with the same `mfa_token`. `conflict`: the person has no passkey.',
        tags: ['auth'],
        body: MfaEnrollment,
        response: { 200: PasskeyRequestOptions }
      }
    },
    (request) => offerPasskey(app, request)
  )

  app.post(
    '/auth/mfa/passkeys/options',
    {
      config: { access: 'public', throttled: true, takesProof: true, problems: signIn },
      schema: {
        operationId: 'startPasskeyEnrollment',
        summary: 'Begin to add a first passkey at sign-in',
        description:
          'For people whose agency demands a second factor and who have none: sign-in answered `mfa_required` with `enroll`. What `navigator.credentials.create` needs; `POST /api/v1/auth/mfa/passkeys` takes what it returns, with the same `mfa_token`, within five minutes.',
        tags: ['auth'],
        body: MfaEnrollment,
        response: { 200: PasskeyCreationOptions }
      }
    },
    (request) => offerNewPasskey(app, request)
  )

  app.post(
    '/auth/mfa/passkeys',
    {
      config: {
        access: 'public',
        throttled: true,
        takesProof: true,
        problems: [...signIn, 'invalid_passkey', 'invalid_challenge', 'conflict']
      },
      schema: {
        operationId: 'completeSignInWithNewPasskey',
        summary: 'Add a first passkey, and complete the sign-in',
        description:
          'The passkey is a factor in every agency of the person from now on. Ends every other session. The reply has tokens for the agency of the sign-in, and ten recovery codes, which are never shown again.',
        tags: ['auth'],
        body: PasskeyEnrollment,
        response: { 200: MfaReply }
      }
    },
    (request) => completeWithNewPasskey(app, request)
  )

  app.post(
    '/auth/reauthenticate/passkey/options',
    {
      config: { access, reach: 'person', throttled: true },
      schema: {
        operationId: 'startPasskeyProof',
        summary: 'Begin to prove with a passkey who you are',
        description:
          'What `navigator.credentials.get` needs. What it returns is the `passkey` of `POST /api/v1/auth/reauthenticate`, of new recovery codes, or of the removal of the authenticator app, within five minutes and in the same session.',
        tags: ['auth'],
        response: { 200: PasskeyRequestOptions }
      }
    },
    (request) => {
      const { user_id, sid } = request.user
      return app.passkeys.offerAssertion(request, 'proof', { user_id, context: sid }, request.user)
    }
  )

  app.post(
    '/auth/reauthenticate',
    {
      config: { access, reach: 'person', problems: [...wrong, 'invalid_challenge', 'conflict'] },
      schema: {
        operationId: 'reauthenticate',
        summary: 'Prove again who you are',
        description:
          'With the password, a code of the second factor or a passkey. For five minutes this session may do what answers `reauthentication_required` otherwise. The tokens stay the same. In a session through the own provider of an agency, sign in through it again instead.',
        tags: ['auth'],
        body: Reauthentication,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await reauthenticate(app, request, reply)
      reply.code(204)
    }
  )
}

export default mfa

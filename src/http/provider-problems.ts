import { problem } from './problem-documents.ts'

/*
 * The problems of sign-in at identity providers, which are a part of the catalogue in problems.ts.
 */

/** One answer for a code that is wrong, old or used, so that a guess tells nothing. */
export const invalidSignInCode = problem(
  'invalid_sign_in_code',
  401,
  'The code of the sign-in is not valid',
  'Begin again at `GET /api/v1/auth/oauth/{provider}`. A code is good for a minute, once, and with the `code_verifier` of the `code_challenge` that the sign-in began with.'
)

/** The flow of a sign-in at a provider is not one of this browser, or was used, or is too old. */
export const invalidOauthState = problem(
  'invalid_oauth_state',
  400,
  'This sign-in is not one of this browser, or is over',
  'Begin again, in one browser, and finish within ten minutes.'
)

/** An identity is never linked to an account because of an equal address: whoever registered it may not own it. */
export const identityNotLinked = problem(
  'identity_not_linked',
  403,
  'This identity is linked to no account',
  'Sign in as you did before, and link it at `POST /api/v1/users/me/identities`.'
)

export const signInCancelled = problem(
  'sign_in_cancelled',
  403,
  'The sign-in was cancelled at the provider',
  'Begin again when the person wants to.'
)

export const identityTaken = problem(
  'identity_taken',
  409,
  'This identity is linked to an account already',
  'Unlink it there first, or sign in with it.'
)

export const lastSignInMethod = problem(
  'last_sign_in_method',
  409,
  'It is the only way to sign in',
  'Set a password, or link another identity, first.'
)

/** Neither names what the provider has sent: it is in the log of the server only as a kind of failure. */
export const providerError = problem(
  'provider_error',
  502,
  'The identity provider gave no usable answer',
  'Begin again. If it stays so, the provider or its settings here are at fault.'
)

export const providerTimeout = problem(
  'provider_timeout',
  504,
  'The identity provider did not answer in time',
  'Begin again a little later.'
)

import { problem } from './problem-documents.ts'

/*
 * The part of the catalogue in problems.ts that is about sign-in at providers and with passkeys, about the domains
 * and the demand of an agency, and about proofs of keys.
 */

/** The flow of a sign-in at a provider is not one of this browser, or was used, or is too old. */
export const invalidOauthState = problem(
  'invalid_oauth_state',
  400,
  'This sign-in is not one of this browser, or is over',
  'Begin again, in one browser, and finish within ten minutes.'
)
/** One answer for a code that is wrong, old or used, so that a guess tells nothing. */
export const invalidSignInCode = problem(
  'invalid_sign_in_code',
  401,
  'The code of the sign-in is not valid',
  'Begin again at `GET /api/v1/auth/oauth/{provider}`. A code is good for a minute, once, and with the `code_verifier` of the `code_challenge` that the sign-in began with.'
)
/** An identity is never linked to an account because of an equal address: whoever registered it may not own it. */
export const identityNotLinked = problem(
  'identity_not_linked',
  403,
  'This identity is linked to no account',
  'Sign in as you did before, and link it at `POST /api/v1/users/me/identities`.'
)
/** The invitation stays as it was, so that the person it was sent to can accept it. */
export const invitationForAnother = problem(
  'invitation_for_another',
  403,
  'The invitation is for another address',
  'Sign in at the provider as the person whom the invitation was sent to, or accept it with a password.'
)
export const signInCancelled = problem(
  'sign_in_cancelled',
  403,
  'The sign-in was cancelled at the provider',
  'Begin again when the person wants to.'
)
/** Only after the password, or another proof, was right. `provider` is its id. */
export const providerRequired = problem(
  'provider_required',
  403,
  'The agency demands its own provider',
  'Begin a sign-in at `GET /api/v1/auth/oauth/{provider}` with the `provider` of this document.'
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
  'Set a password, add a passkey or link another identity first.'
)
/** `missing` lists what the agency lacks. */
export const enforcementNotReady = problem(
  'enforcement_not_ready',
  409,
  'The agency cannot demand its provider yet',
  'Bring about what `missing` lists: a domain that is proven (`proven_domain`), an owner who came in through the provider within a day (`owner_sign_in`), and a break-glass owner with a password and a second factor (`break_glass_owner`).'
)
export const lastBreakGlassOwner = problem(
  'last_break_glass_owner',
  409,
  'An agency that demands its provider keeps a break-glass owner',
  'Make another owner with a password and a second factor a break-glass owner, or end the demand, first.'
)
/** `reason` says what DNS answered. */
export const domainNotProven = problem(
  'domain_not_proven',
  409,
  'The record of the domain was not found',
  'Publish `record` of the domain in DNS, wait until the name servers have it, and verify again. `detail` says what was found.'
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
/** What the authenticator or the browser has made is not a passkey for this page. */
export const invalidPasskey = problem(
  'invalid_passkey',
  400,
  'The passkey was not accepted',
  'Send what `navigator.credentials.create` returned for the newest options, from a page of the agency, with a person who was verified by the device.'
)
/** One answer for every reason: used, expired, made for something else or for somebody else. */
export const invalidChallenge = problem(
  'invalid_challenge',
  401,
  'The challenge of the passkey is not valid',
  'Get new options and ask the passkey again. A challenge is good for five minutes, once, and for what it was asked for.'
)
/** `detail` says what is wrong with the proof. */
export const invalidDpopProof = problem(
  'invalid_dpop_proof',
  401,
  'The proof of the key is missing or not valid',
  'Sign a new proof for each request, with the key that the session is bound to, and send it as `DPoP`. `detail` says what is wrong.'
)
/** Also for a proof whose nonce is too old. */
export const useDpopNonce = problem(
  'use_dpop_nonce',
  401,
  'The proof needs a nonce of this server',
  'Sign a new proof with the nonce in the `DPoP-Nonce` header of this reply, and send the request again.'
)

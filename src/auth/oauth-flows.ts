import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'
import { v7 as uuidv7 } from 'uuid'
import { createKeyRing } from '../keys.ts'
import type { OneTimeToken } from './one-time-tokens.ts'
import type { Profile } from './providers/provider.ts'
import { createSealedTokens } from './sealed-tokens.ts'

/** The session that links an identity. Null for a sign-in. */
export type LinkingSession = { user_id: string; sid: string }

/** A mailed invitation, whose token was genuine when the flow began. */
export type Invited = Omit<OneTimeToken, 'tenant_id'>

/** What the client asked for when it began a flow. */
export type FlowRequest = {
  provider: string
  /** The agency to sign in to. Null: the one used last. */
  tenant_id: string | null
  redirect_to: string
  /** PKCE of the client (RFC 7636, S256), so that only it can exchange the code that comes back. */
  code_challenge: string
  link: LinkingSession | null
  /** The invitation that the person holds, to the agency of `tenant_id`. */
  invitation?: Invited
}

/** A flow that is under way in one browser. It lies in a cookie of that browser. */
export type Flow = FlowRequest & { id: string; state: string; nonce: string; code_verifier: string; begun_at: number }

/** A code with which the client gets tokens, accepts an invitation and gets tokens, or links the identity. */
export type FlowCode = { id: string; provider: string; tenant_id: string; code_challenge: string } & (
  | { purpose: 'sign_in'; user_id: string; password_version: number; identity_id: string; provider_id: string | null }
  | { purpose: 'invitation'; invitation: Invited; own: boolean; profile: Profile }
  | { purpose: 'link'; session: LinkingSession; own: boolean; profile: Profile }
)

export const flowSeconds = 600
export const codeSeconds = 60
export const ticketSeconds = 120
/** A mark of what was used must live longer than what it marks. */
export const markSeconds = flowSeconds * 2

export type OauthTokens = ReturnType<typeof createOauthTokens>

/**
 * The sealed tokens of a flow. Each has a key of its own, so that none is taken for another.
 *
 * - `tickets`: lets the browser of a signed-in person begin to link, because a navigation carries no bearer token.
 * - `flows`: the cookie.
 * - `codes`: what the client gets when the person comes back.
 */
export function createOauthTokens(secrets: readonly string[]) {
  const sealed = <Content extends object>(purpose: string, seconds: number) =>
    createSealedTokens<Content>(createKeyRing(secrets, purpose), purpose, seconds)
  return {
    tickets: sealed<FlowRequest & { id: string }>('oauth ticket', ticketSeconds),
    flows: sealed<Flow>('oauth flow', flowSeconds),
    codes: sealed<FlowCode>('oauth code', codeSeconds)
  }
}

/** Begins a flow, with secrets of 256 random bits. */
export function createFlow(request: FlowRequest): Flow {
  const random = () => randomBytes(32).toString('base64url')
  const begun_at = Date.now()
  return { ...request, id: uuidv7(), state: random(), nonce: random(), code_verifier: random(), begun_at }
}

/** Tells whether a verifier is the one of an S256 challenge (RFC 7636, 4.6). */
export function isVerifierOf(challenge: string, verifier: string): boolean {
  const expected = Buffer.from(challenge)
  const given = Buffer.from(createHash('sha256').update(verifier).digest('base64url'))
  return expected.length === given.length && timingSafeEqual(expected, given)
}

/** The name of the cookie of a flow. Flows of several tabs have a cookie each. */
export function flowCookie(state: string, { secure }: { secure: boolean }): string {
  return flowCookiePrefix({ secure }) + createHash('sha256').update(state).digest('hex').slice(0, 16)
}

export const flowCookiePrefix = ({ secure }: { secure: boolean }) => `${secure ? '__Host-' : ''}aggios_flow_`

import { base64url } from './base64url.js'

/** Makes a verifier and its S256 challenge (RFC 7636). Browsers have `crypto.subtle` on https and on localhost only. */
export async function createPkce(): Promise<{ code_verifier: string; code_challenge: string }> {
  const code_verifier = base64url(crypto.getRandomValues(new Uint8Array(32)))
  const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(code_verifier))
  return { code_verifier, code_challenge: base64url(new Uint8Array(digest)) }
}

import type { Client } from 'openapi-fetch'
import { getCredential } from './passkeys.js'
import { unwrap } from './problems.js'
import type { FactorProof, FactorSecret, PasskeyAssertion, paths, Reauthentication, RecoveryCodes } from './schema.js'

/** What a signed-in person does with their second factor, and with what protects it. */
export type Factors = {
  /**
   * Begins to set an authenticator app up. Show `uri` as a QR code and `secret` as text. Needs a sign-in within the last
   * five minutes.
   */
  startTotp(): Promise<FactorSecret>
  /** Sets the app up, with a code of it. From now on sign-in asks for one. The recovery codes are to be shown once. */
  confirmTotp(code: string): Promise<RecoveryCodes>
  /**
   * Begins to set an app up in the middle of a sign-in, where the agency demands a factor (`enroll` of the error).
   * `completeSignIn` with a code of the app ends both.
   */
  enrollAtSignIn(mfa_token: string): Promise<FactorSecret>
  /** Removes the app. Takes `{ code }`, or what `proveWithPasskey` gives. */
  removeTotp(proof: FactorProof): Promise<void>
  /** Replaces the recovery codes by new ones, to be shown once. Takes `{ code }`, or what `proveWithPasskey` gives. */
  renewRecoveryCodes(proof: FactorProof): Promise<RecoveryCodes>
  /** Removes a passkey. Needs a proof by a factor within the last five minutes. */
  removePasskey(id: string): Promise<void>
  /**
   * Proves again who the person is, after which a call that was refused with `reauthentication_required` can be
   * repeated. Takes `{ password }`, `{ code }`, or what `proveWithPasskey` gives.
   */
  reauthenticate(proof: Reauthentication): Promise<void>
  /** Asks for a passkey of the person, once for each use. In browsers, on a page of the agency. */
  proveWithPasskey(): Promise<{ passkey: PasskeyAssertion }>
}

/** `client` sends with the access token, `anonymous` without. */
export function createFactors(client: Client<paths>, anonymous: Client<paths>): Factors {
  return {
    startTotp: () => unwrap(client.POST('/api/v1/users/me/mfa/totp')),
    confirmTotp: (code) => unwrap(client.POST('/api/v1/users/me/mfa/totp/confirm', { body: { code } })),
    enrollAtSignIn: (mfa_token) => unwrap(anonymous.POST('/api/v1/auth/mfa/totp', { body: { mfa_token } })),
    async removeTotp(body) {
      await unwrap(client.DELETE('/api/v1/users/me/mfa/totp', { body }))
    },
    renewRecoveryCodes: (body) => unwrap(client.POST('/api/v1/users/me/mfa/recovery-codes', { body })),
    async removePasskey(id) {
      await unwrap(client.DELETE('/api/v1/users/me/passkeys/{id}', { params: { path: { id } } }))
    },
    async reauthenticate(body) {
      await unwrap(client.POST('/api/v1/auth/reauthenticate', { body }))
    },
    async proveWithPasskey() {
      const options = await unwrap(client.POST('/api/v1/auth/reauthenticate/passkey/options'))
      return { passkey: await getCredential(options) }
    }
  }
}

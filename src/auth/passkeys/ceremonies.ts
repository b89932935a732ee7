import {
  type AuthenticationResponseJSON,
  type RegistrationResponseJSON,
  verifyAuthenticationResponse,
  verifyRegistrationResponse
} from '@simplewebauthn/server'
import { decodeAttestationObject } from '@simplewebauthn/server/helpers'
import { uuidToBytes } from '../../uuids.ts'
import { challengeSeconds } from './challenges.ts'

/*
 * WebAuthn without I/O: what a browser is asked for, and whether its answer is valid. The person must always have been
 * verified by the authenticator (a finger, a face or a PIN), so that a passkey is two factors.
 */

/** An answer of `navigator.credentials.create` and `.get` as JSON (WebAuthn, 5.1). Nothing in it can be trusted. */
export type RegistrationAnswer = {
  id: string
  rawId: string
  type: string
  response: { clientDataJSON: string; attestationObject: string; transports?: readonly string[] }
}
export type AssertionAnswer = {
  id: string
  rawId: string
  type: string
  response: { clientDataJSON: string; authenticatorData: string; signature: string; userHandle?: string | null }
}

/** What is stored of a passkey. */
export type VerifiedPasskey = {
  credential_id: Buffer
  public_key: Buffer
  counter: number
  transports: string[]
  device_type: 'single_device' | 'multi_device'
  backed_up: boolean
}
export type VerifiedAssertion = { counter: number; backed_up: boolean }

/** COSE numbers of EdDSA, ES256 and RS256, in the order in which an authenticator is asked for them. */
const algorithms = [-8, -7, -257]
const timeout = challengeSeconds * 1000
/** The ways that WebAuthn names. Others are dropped: they are hints for the browser only. */
const knownTransports = new Set(['usb', 'nfc', 'ble', 'smart-card', 'hybrid', 'internal'])

type Credential = { credential_id: Buffer; transports: string[] }
const publicKey = 'public-key' as const
const describe = ({ credential_id, transports }: Credential) => ({
  id: credential_id.toString('base64url'),
  type: publicKey,
  transports
})

export type CreationOptions = ReturnType<typeof creationOptions>
export type RequestOptions = ReturnType<typeof requestOptions>

/** `PublicKeyCredentialCreationOptionsJSON` of WebAuthn. */
export function creationOptions(
  rpId: string,
  challenge: string,
  { user_id, email, name }: { user_id: string; email: string; name: string },
  existing: readonly Credential[]
) {
  return {
    challenge,
    rp: { name: 'Aggios', id: rpId },
    // an authenticator shows the name and the address, and returns the id at each use
    user: { id: uuidToBytes(user_id).toString('base64url'), name: email, displayName: name },
    pubKeyCredParams: algorithms.map((alg) => ({ alg, type: publicKey })),
    timeout,
    attestation: 'none',
    // so that a device is not registered twice
    excludeCredentials: existing.map(describe),
    // a sign-in asks for no address, so the authenticator must find the passkey itself
    authenticatorSelection: { residentKey: 'required', requireResidentKey: true, userVerification: 'required' }
  }
}

/** `PublicKeyCredentialRequestOptionsJSON` of WebAuthn. Without credentials any passkey of the domain will do. */
export function requestOptions(rpId: string, challenge: string, credentials: readonly Credential[] = []) {
  return { challenge, rpId, timeout, userVerification: 'required', allowCredentials: credentials.map(describe) }
}

/**
 * What the browser says about itself and the page. The signature covers it, so it is true once the signature is
 * verified. Undefined when it is no client data.
 */
export function readClientData(clientDataJSON: string): { challenge: string; origin: string } | undefined {
  try {
    const { challenge, origin, crossOrigin } = JSON.parse(Buffer.from(clientDataJSON, 'base64url').toString())
    // a page in a frame of another site could be made to look like something else
    if (typeof challenge !== 'string' || typeof origin !== 'string' || crossOrigin === true) return undefined
    return { challenge, origin }
  } catch {
    return undefined
  }
}

type Expected = { challenge: string; origin: string; rpId: string }

/**
 * Undefined for an answer that is not valid, whatever is wrong with it.
 *
 * No attestation is asked for, so browsers send none, or one that the passkey has signed itself. Those with certificates
 * are refused: to verify one, the package would fetch a revocation list from an address that the sender has chosen.
 */
export async function verifyRegistration(
  answer: RegistrationAnswer,
  { challenge, origin, rpId }: Expected
): Promise<VerifiedPasskey | undefined> {
  try {
    if (hasCertificates(answer.response.attestationObject)) return undefined
    const { verified, registrationInfo } = await verifyRegistrationResponse({
      response: answer as RegistrationResponseJSON,
      expectedChallenge: challenge,
      expectedOrigin: origin,
      expectedRPID: rpId,
      requireUserVerification: true,
      supportedAlgorithmIDs: algorithms
    })
    // the id that was verified is the one in the authenticator's data; the one beside it is not covered
    if (!verified || registrationInfo.credential.id !== answer.id) return undefined
    const { credential, credentialDeviceType, credentialBackedUp } = registrationInfo
    return {
      credential_id: Buffer.from(credential.id, 'base64url'),
      public_key: Buffer.from(credential.publicKey),
      counter: credential.counter,
      transports: [...new Set(answer.response.transports)].filter((way) => knownTransports.has(way)),
      device_type: credentialDeviceType === 'multiDevice' ? 'multi_device' : 'single_device',
      backed_up: credentialBackedUp
    }
  } catch {
    return undefined
  }
}

function hasCertificates(attestationObject: string): boolean {
  const decoded = decodeAttestationObject(new Uint8Array(Buffer.from(attestationObject, 'base64url')))
  const format = decoded.get('fmt')
  return format !== 'none' && !(format === 'packed' && decoded.get('attStmt').get('x5c') === undefined)
}

/**
 * Undefined for an answer that is not valid, whatever is wrong with it. The caller compares the counter, in the
 * transaction that stores it.
 */
export async function verifyAssertion(
  answer: AssertionAnswer,
  { user_id, credential_id, public_key }: { user_id: string; credential_id: Buffer; public_key: Buffer },
  { challenge, origin, rpId }: Expected
): Promise<VerifiedAssertion | undefined> {
  // WebAuthn, 7.2, step 6: the handle, if there is one, names the owner of the passkey
  const { userHandle } = answer.response
  if (userHandle && userHandle !== uuidToBytes(user_id).toString('base64url')) return undefined
  try {
    const { verified, authenticationInfo } = await verifyAuthenticationResponse({
      response: answer as AuthenticationResponseJSON,
      expectedChallenge: challenge,
      expectedOrigin: origin,
      expectedRPID: rpId,
      credential: {
        id: credential_id.toString('base64url'),
        publicKey: new Uint8Array(public_key),
        // with 0 the package compares nothing
        counter: 0
      },
      requireUserVerification: true
    })
    const { newCounter, credentialBackedUp } = authenticationInfo
    return verified ? { counter: newCounter, backed_up: credentialBackedUp } : undefined
  } catch {
    return undefined
  }
}

import type { PasskeyAssertion, PasskeyCreationOptions, PasskeyInput, PasskeyRequestOptions } from './schema.js'

/*
 * What a browser's `navigator.credentials` takes and gives, from and to JSON. Browsers that have the conversions of WebAuthn 3
 * are not needed for it.
 */

const toBytes = (text: string): Uint8Array<ArrayBuffer> => {
  const binary = atob(text.replaceAll('-', '+').replaceAll('_', '/'))
  return Uint8Array.from(binary, (character) => character.charCodeAt(0))
}

const toText = (bytes: ArrayBuffer): string =>
  btoa(String.fromCharCode(...new Uint8Array(bytes)))
    .replaceAll('+', '-')
    .replaceAll('/', '_')
    .replaceAll('=', '')

type Descriptors = PasskeyRequestOptions['allowCredentials']
const descriptorsOf = (descriptors: Descriptors): PublicKeyCredentialDescriptor[] =>
  descriptors.map(({ id, type, transports }) => ({
    id: toBytes(id),
    type,
    ...(transports && { transports: transports as AuthenticatorTransport[] })
  }))

/** Asks the device for a new passkey. Rejects as the browser does, with `NotAllowedError` when the person refuses. */
export async function createCredential(options: PasskeyCreationOptions): Promise<PasskeyInput['passkey']> {
  const { challenge, user, excludeCredentials, ...others } = options
  const credential = (await navigator.credentials.create({
    publicKey: {
      ...others,
      challenge: toBytes(challenge),
      user: { ...user, id: toBytes(user.id) },
      excludeCredentials: descriptorsOf(excludeCredentials),
      attestation: 'none',
      authenticatorSelection: { residentKey: 'required', requireResidentKey: true, userVerification: 'required' }
    }
  })) as PublicKeyCredential
  const response = credential.response as AuthenticatorAttestationResponse
  return {
    id: credential.id,
    rawId: credential.id,
    type: 'public-key',
    response: {
      clientDataJSON: toText(response.clientDataJSON),
      attestationObject: toText(response.attestationObject),
      transports: response.getTransports()
    }
  }
}

/** Asks the device for a passkey. Rejects as the browser does, with `NotAllowedError` when the person refuses. */
export async function getCredential(options: PasskeyRequestOptions): Promise<PasskeyAssertion> {
  const { challenge, allowCredentials, rpId, timeout } = options
  const credential = (await navigator.credentials.get({
    publicKey: {
      challenge: toBytes(challenge),
      rpId,
      timeout,
      userVerification: 'required',
      allowCredentials: descriptorsOf(allowCredentials)
    }
  })) as PublicKeyCredential
  const response = credential.response as AuthenticatorAssertionResponse
  return {
    id: credential.id,
    rawId: credential.id,
    type: 'public-key',
    response: {
      clientDataJSON: toText(response.clientDataJSON),
      authenticatorData: toText(response.authenticatorData),
      signature: toText(response.signature),
      userHandle: response.userHandle && toText(response.userHandle)
    }
  }
}

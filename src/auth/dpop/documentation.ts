/*
 * What the OpenAPI document says about proofs.
 */

/** How a token of a bound session is presented. */
export const proofScheme = {
  type: 'http' as const,
  scheme: 'dpop',
  description:
    'A token with `token_type` `DPoP`, and a proof of its key in the header `DPoP` (RFC 9449): a JWT of type `dpop+jwt`, signed with ES256, with `htm`, `htu`, `iat`, `jti`, `ath` and the `nonce` of the newest `DPoP-Nonce` header, which any reply may have. Each proof is good for one request.'
}

/** The description of the header, and an example. */
export const proofNonceHeader = [
  'The nonce of the next proof: with `use_dpop_nonce`, and when the last one gets old',
  'AABpRQ…'
] as const

const proofHeader = {
  type: 'string',
  description:
    'A proof of a key (RFC 9449), with the `nonce` of the newest `DPoP-Nonce` header. Binds the session to it.',
  examples: ['eyJ…']
}

/** Adds the header of a proof to those of an operation. No schema validates it, because `detail` says more about it. */
export function withProof(headers: object = {}): object {
  const { properties = {} } = headers as { properties?: object }
  return { type: 'object', ...headers, properties: { ...properties, dpop: proofHeader } }
}

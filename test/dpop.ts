import { createHash, generateKeyPairSync, type KeyObject, randomUUID, sign } from 'node:crypto'
import type { FastifyInstance, InjectOptions } from 'fastify'
import { type Reply, send, type Tokens } from './harness.ts'
import { encode, type Json, seconds } from './tokens.ts'

/*
 * Clients that prove a key with each request (DPoP, RFC 9449). Made with node:crypto only, not with what the product uses.
 */

export type ProofKey = { jwk: Json; private: KeyObject; thumbprint: string }

export function createProofKey(): ProofKey {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const { x, y } = publicKey.export({ format: 'jwk' })
  const jwk = { kty: 'EC', crv: 'P-256', x, y }
  const canonical = JSON.stringify({ crv: 'P-256', kty: 'EC', x, y })
  return { jwk, private: privateKey, thumbprint: hashOf(canonical) }
}

export const hashOf = (text: string) => createHash('sha256').update(text).digest('base64url')

/** Signs any header and any claims. */
export function signProof(key: ProofKey, header: unknown, claims: unknown): string {
  const input = `${encode(header)}.${encode(claims)}`
  const signature = sign('sha256', Buffer.from(input), { key: key.private, dsaEncoding: 'ieee-p1363' })
  return `${input}.${signature.toString('base64url')}`
}

/** The proof of one request. A member of `change` replaces a claim, and takes it away where it is undefined. */
export function makeProof(
  key: ProofKey,
  {
    method,
    url,
    token,
    nonce
  }: { method: string; url: string; token?: string | undefined; nonce?: string | undefined },
  change: Json = {}
): string {
  const claims = {
    ...{ jti: randomUUID(), htm: method, htu: url.split('?', 1)[0], iat: seconds() },
    ...(token !== undefined && { ath: hashOf(token) }),
    ...(nonce !== undefined && { nonce }),
    ...change
  }
  return signProof(key, { typ: 'dpop+jwt', alg: 'ES256', jwk: key.jwk }, claims)
}

/** A device with a key, which keeps the newest nonce and repeats a request that needs one, as clients do. */
export type Device = {
  key: ProofKey
  nonce: string | undefined
  /** How often a request was repeated with a nonce. */
  repeats: number
  /** Sends a request with a proof, and with a token if there is one. */
  send(host: string, options: InjectOptions | string, tokens?: Pick<Tokens, 'access_token'>): Promise<Reply>
  /** The headers of one request. */
  headers(method: string, url: string, tokens?: Pick<Tokens, 'access_token'>, change?: Json): Record<string, string>
}

export function createDevice(app: FastifyInstance, key: ProofKey = createProofKey()): Device {
  const device: Device = {
    key,
    nonce: undefined,
    repeats: 0,
    headers(method, url, tokens, change) {
      const { access_token: token } = tokens ?? {}
      return {
        dpop: makeProof(key, { method, url, token, nonce: device.nonce }, change),
        ...(token !== undefined && { authorization: `DPoP ${token}` })
      }
    },
    async send(host, options, tokens) {
      const request = typeof options === 'string' ? { url: options } : options
      const url = `http://${host}${request.url}`
      for (let attempt = 1; ; attempt++) {
        const headers = { ...request.headers, ...device.headers(request.method ?? 'GET', url, tokens) }
        const reply = await send(app, host, { ...request, headers })
        const nonce = reply.headers['dpop-nonce']
        if (typeof nonce === 'string') device.nonce = nonce
        if (attempt > 1 || reply.statusCode !== 401 || reply.json().code !== 'use_dpop_nonce') return reply
        device.repeats++
      }
    }
  }
  return device
}

import { base64url } from './base64url.js'
import type { Send } from './retries.js'

const algorithm = { name: 'ECDSA', namedCurve: 'P-256' } as const
const signing = { name: 'ECDSA', hash: 'SHA-256' } as const
const keyName = 'key'
const text = new TextEncoder()

/**
 * Makes a key for a session whose tokens are worthless without it (DPoP, RFC 9449). Scripts can use it, but nobody can read
 * it. Browsers have `crypto.subtle` on https and on localhost only.
 */
export function createProofKey(): Promise<CryptoKeyPair> {
  return crypto.subtle.generateKey(algorithm, false, ['sign', 'verify'])
}

/**
 * The key that this browser keeps in IndexedDB, for all tabs of the origin. Makes one at the first call. Use it beside
 * `localStorageStore`, so that the key lives as long as the tokens.
 */
export async function storedProofKey(name = 'aggios.proof-key'): Promise<CryptoKeyPair> {
  const opening = indexedDB.open(name, 1)
  opening.onupgradeneeded = () => void opening.result.createObjectStore(keyName)
  const database = await settled(opening)
  try {
    const found = await settled<CryptoKeyPair | undefined>(keysOf(database, 'readonly').get(keyName))
    if (found) return found
    const made = await createProofKey()
    const keys = keysOf(database, 'readwrite')
    // another tab may have been faster
    const theirs = await settled<CryptoKeyPair | undefined>(keys.get(keyName))
    if (!theirs) await settled(keys.put(made, keyName))
    return theirs ?? made
  } finally {
    database.close()
  }
}

const keysOf = (database: IDBDatabase, mode: IDBTransactionMode) =>
  database.transaction(keyName, mode).objectStore(keyName)

function settled<Result>(request: IDBRequest<Result>): Promise<Result> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result)
    request.onerror = () => reject(request.error)
  })
}

/**
 * Sends each request with a proof of the key. Keeps the newest nonce of the server, and repeats a request that needs a newer
 * one, once.
 */
export function withProofs(send: Send, key: CryptoKeyPair | Promise<CryptoKeyPair>): Send {
  let nonce: string | undefined
  return async (request) => {
    for (let attempt = 1; ; attempt++) {
      // a body can be sent only once
      const copy = attempt === 1 ? request.clone() : request
      copy.headers.set('dpop', await createProof(await key, copy, nonce))
      const response = await send(copy)
      nonce = response.headers.get('dpop-nonce') ?? nonce
      if (attempt > 1 || !needsNonce(response)) {
        if (attempt === 1) await request.body?.cancel()
        return response
      }
      await response.body?.cancel()
    }
  }
}

const needsNonce = ({ status, headers }: Response) =>
  status === 401 && (headers.get('www-authenticate') ?? '').includes('error="use_dpop_nonce"')

/** Signs the proof of one request. */
async function createProof({ publicKey, privateKey }: CryptoKeyPair, request: Request, nonce: string | undefined) {
  const { kty, crv, x, y } = await crypto.subtle.exportKey('jwk', publicKey)
  const token = /^DPoP (.*)$/.exec(request.headers.get('authorization') ?? '')?.[1]
  const header = { typ: 'dpop+jwt', alg: 'ES256', jwk: { kty, crv, x, y } }
  const claims = {
    jti: base64url(crypto.getRandomValues(new Uint8Array(16))),
    htm: request.method,
    htu: request.url.replace(/[?#].*$/, ''),
    iat: Math.floor(Date.now() / 1000),
    ...(token !== undefined && {
      ath: base64url(new Uint8Array(await crypto.subtle.digest('SHA-256', text.encode(token))))
    }),
    ...(nonce !== undefined && { nonce })
  }
  const content = [header, claims].map((part) => base64url(text.encode(JSON.stringify(part)))).join('.')
  const signature = await crypto.subtle.sign(signing, privateKey, text.encode(content))
  return `${content}.${base64url(new Uint8Array(signature))}`
}

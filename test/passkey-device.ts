import { createHash, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto'
import { post, type Reply, send, type Tenant, type TestApp, type Tokens } from './harness.ts'
import { bearer } from './requests.ts'

/*
 * An authenticator in software, with everything that a test wants to forge, and the requests of people who have one.
 */

export type CreationOptions = { challenge: string; rp: { id: string }; user: { id: string } }
export type RequestOptions = { challenge: string; rpId: string; allowCredentials: { id: string }[] }
/** What a test changes of an honest answer. */
export type Forgery = {
  origin?: string
  rpId?: string
  type?: string
  challenge?: string
  crossOrigin?: boolean
  verified?: boolean
  present?: boolean
  counter?: number
  userHandle?: string | null
  /** Another key signs. */
  key?: KeyObject
  fmt?: string
  attStmt?: Map<unknown, unknown>
}
export type Device = ReturnType<typeof createDevice>

const flag = { present: 0x01, verified: 0x04, backupEligible: 0x08, backedUp: 0x10, attested: 0x40 }
const sha256 = (data: string | Buffer) => createHash('sha256').update(data).digest()

/** Writes what authenticators write: integers, texts, bytes, arrays and maps (RFC 8949). */
export function cbor(value: unknown): Buffer {
  if (typeof value === 'number') return value < 0 ? head(1, -1 - value) : head(0, value)
  if (typeof value === 'string') return Buffer.concat([head(3, Buffer.byteLength(value)), Buffer.from(value)])
  if (Buffer.isBuffer(value)) return Buffer.concat([head(2, value.length), value])
  if (Array.isArray(value)) return Buffer.concat([head(4, value.length), ...value.map(cbor)])
  const entries = [...(value as Map<unknown, unknown>)]
  return Buffer.concat([head(5, entries.length), ...entries.flatMap((entry) => entry.map(cbor))])
}

function head(major: number, size: number): Buffer {
  const first = major << 5
  if (size < 24) return Buffer.from([first | size])
  if (size < 256) return Buffer.from([first | 24, size])
  return Buffer.from([first | 25, size >> 8, size & 255])
}

type Algorithm = 'ES256' | 'EdDSA' | 'RS256'

function createKey(algorithm: Algorithm): { privateKey: KeyObject; cose: Map<number, unknown> } {
  const bytes = (text: unknown) => Buffer.from(text as string, 'base64url')
  if (algorithm === 'ES256') {
    const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    const { x, y } = publicKey.export({ format: 'jwk' })
    return {
      privateKey,
      cose: new Map<number, unknown>([...entriesOf([1, 2, 3, -7, -1, 1]), [-2, bytes(x)], [-3, bytes(y)]])
    }
  }
  if (algorithm === 'EdDSA') {
    const { privateKey, publicKey } = generateKeyPairSync('ed25519')
    const { x } = publicKey.export({ format: 'jwk' })
    return { privateKey, cose: new Map<number, unknown>([...entriesOf([1, 1, 3, -8, -1, 6]), [-2, bytes(x)]]) }
  }
  const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 })
  const { n, e } = publicKey.export({ format: 'jwk' })
  return { privateKey, cose: new Map<number, unknown>([...entriesOf([1, 3, 3, -257]), [-1, bytes(n)], [-2, bytes(e)]]) }
}

const entriesOf = (flat: number[]): [number, unknown][] =>
  flat.flatMap((key, index) => (index % 2 === 0 ? [[key, flat[index + 1]] as [number, unknown]] : []))

/** A device with one passkey, used on the pages of one origin. It counts its uses unless `counts` is false. */
export function createDevice(
  origin: string,
  {
    algorithm = 'ES256',
    counts = true,
    id = randomBytes(16)
  }: { algorithm?: Algorithm; counts?: boolean; id?: Buffer } = {}
) {
  const { privateKey, cose } = createKey(algorithm)
  const credentialId = id.toString('base64url')
  let counter = 0
  let owner: string | null = null

  function clientData(type: string, challenge: string, forgery: Forgery): Buffer {
    const data = {
      type,
      challenge,
      origin,
      crossOrigin: false,
      ...pick(forgery, ['type', 'challenge', 'origin', 'crossOrigin'])
    }
    return Buffer.from(JSON.stringify(data))
  }

  function authenticatorData(rpId: string, forgery: Forgery, attested = Buffer.alloc(0)): Buffer {
    const flags =
      (forgery.present === false ? 0 : flag.present) |
      (forgery.verified === false ? 0 : flag.verified) |
      flag.backupEligible |
      (attested.length > 0 ? flag.attested : 0)
    const count = Buffer.alloc(4)
    count.writeUInt32BE(forgery.counter ?? (counts ? ++counter : 0))
    return Buffer.concat([sha256(forgery.rpId ?? rpId), Buffer.from([flags]), count, attested])
  }

  return {
    id: credentialId,
    /** Answers as `navigator.credentials.create` does. */
    create(options: CreationOptions, forgery: Forgery = {}) {
      owner = options.user.id
      const length = Buffer.from([id.length >> 8, id.length & 255])
      const attested = Buffer.concat([Buffer.alloc(16), length, id, cbor(cose)])
      const authData = authenticatorData(options.rp.id, forgery, attested)
      const object = new Map<unknown, unknown>([
        ['fmt', forgery.fmt ?? 'none'],
        ['attStmt', forgery.attStmt ?? new Map()],
        ['authData', authData]
      ])
      return {
        id: credentialId,
        rawId: credentialId,
        type: 'public-key',
        clientExtensionResults: {},
        response: {
          clientDataJSON: clientData('webauthn.create', options.challenge, forgery).toString('base64url'),
          attestationObject: cbor(object).toString('base64url'),
          transports: ['internal', 'hybrid']
        }
      }
    },
    /** Answers as `navigator.credentials.get` does. */
    get(options: RequestOptions, forgery: Forgery = {}) {
      const data = clientData('webauthn.get', options.challenge, forgery)
      const authData = authenticatorData(options.rpId, forgery)
      const signed = Buffer.concat([authData, sha256(data)])
      const signature = sign(algorithm === 'EdDSA' ? null : 'sha256', signed, forgery.key ?? privateKey)
      return {
        id: credentialId,
        rawId: credentialId,
        type: 'public-key',
        clientExtensionResults: {},
        response: {
          clientDataJSON: data.toString('base64url'),
          authenticatorData: authData.toString('base64url'),
          signature: signature.toString('base64url'),
          userHandle: forgery.userHandle === undefined ? owner : forgery.userHandle
        }
      }
    }
  }
}

function pick<T extends object, K extends keyof T>(from: T, names: K[]): Partial<Pick<T, K>> {
  return Object.fromEntries(names.filter((name) => from[name] !== undefined).map((name) => [name, from[name]])) as never
}

/** The settings under which agencies share one RP ID, as in production; their pages are at `originOf`. */
export const sharedRpId = { PASSKEY_RP_ID: 'localhost' }
export const originOf = ({ host }: Pick<Tenant, 'host'>) => `http://${host}:8080`
export const passkeys = '/api/v1/users/me/passkeys'

/** Begins to add a passkey, in the session of the token. */
export async function startPasskey(tenant: Tenant, tokens: Tokens = tenant.owner.tokens): Promise<CreationOptions> {
  const reply = await tenant.with(tokens.access_token, { method: 'POST', url: `${passkeys}/options` })
  if (reply.statusCode !== 200) throw new Error(`options: ${reply.statusCode} ${reply.body}`)
  return reply.json()
}

/** Sends what a device answered. */
export const addPasskey = (
  tenant: Tenant,
  passkey: unknown,
  tokens: Tokens = tenant.owner.tokens,
  name = 'A device'
): Promise<Reply> =>
  tenant.with(tokens.access_token, { method: 'POST', url: passkeys, payload: { name, passkey } as object })

/** Adds a passkey on a new device. */
export async function register(
  tenant: Tenant,
  tokens: Tokens = tenant.owner.tokens,
  device = createDevice(originOf(tenant))
): Promise<{ device: Device; id: string; recovery_codes: string[] }> {
  const reply = await addPasskey(tenant, device.create(await startPasskey(tenant, tokens)), tokens)
  if (reply.statusCode !== 201) throw new Error(`passkey: ${reply.statusCode} ${reply.body}`)
  return { device, id: reply.json().id, recovery_codes: reply.json().recovery_codes ?? [] }
}

export async function startSignIn(app: TestApp, host: string): Promise<RequestOptions> {
  return (await send(app, host, { method: 'POST', url: '/api/v1/auth/passkeys/options' })).json()
}

/** Signs in with a device. */
export async function signInWith(
  app: TestApp,
  host: string,
  device: Device,
  forgery: Forgery = {},
  tenant?: string
): Promise<Reply> {
  const passkey = device.get(await startSignIn(app, host), forgery)
  return send(app, host, post('/auth/passkeys', { passkey, ...(tenant !== undefined && { tenant }) }))
}

/** What a browser needs to complete a sign-in with a passkey. */
export async function startFactor(app: TestApp, mfa_token: string, host = 'localhost'): Promise<RequestOptions> {
  const reply = await send(app, host, post('/auth/mfa/passkey/options', { mfa_token }))
  if (reply.statusCode !== 200) throw new Error(`factor: ${reply.statusCode} ${reply.body}`)
  return reply.json()
}

/** What a browser needs to prove who is signed in. */
export async function startProof(tenant: Tenant, tokens: Tokens = tenant.owner.tokens): Promise<RequestOptions> {
  const url = '/api/v1/auth/reauthenticate/passkey/options'
  return (await tenant.anonymous({ method: 'POST', url, headers: bearer(tokens.access_token) })).json()
}

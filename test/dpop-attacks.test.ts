import { createHash, createHmac, generateKeyPairSync, randomUUID, sign } from 'node:crypto'
import t from 'tap'
import { createDevice, createProofKey, hashOf, makeProof, type ProofKey, signProof } from './dpop.ts'
import { allRows, createTenant, password, post, type Reply, send, startApp, type Tokens } from './harness.ts'
import { bearer, listen, me } from './requests.ts'
import { encode, type Json, rawRequest, seconds, sendRaw, sidOf } from './tokens.ts'

/*
 * Attacks on sessions that are bound to a key (DPoP, RFC 9449): by somebody who has stolen tokens, proofs or both.
 */

/** A proof and its parts, for attacks that change one of them. `at` is what the honest proof would be made with. */
type At = { key: ProofKey; method: string; url: string; token: string; nonce: string }
const claimsOf = ({ method, url, token, nonce }: At): Json => ({
  ...{ jti: randomUUID(), htm: method, htu: url, iat: seconds(), ath: hashOf(token), nonce }
})
const headerOf = ({ key }: At): Json => ({ typ: 'dpop+jwt', alg: 'ES256', jwk: key.jwk })
const withClaims = (change: (at: At) => Json) => (at: At) =>
  signProof(at.key, headerOf(at), { ...claimsOf(at), ...change(at) })
const withHeader = (change: (at: At) => Json) => (at: At) =>
  signProof(at.key, { ...headerOf(at), ...change(at) }, claimsOf(at))

const other = createProofKey()
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const edwards = generateKeyPairSync('ed25519')
const p384 = generateKeyPairSync('ec', { namedCurve: 'P-384' })
const publicOf = ({ publicKey }: { publicKey: { export(options: { format: 'jwk' }): unknown } }) =>
  publicKey.export({ format: 'jwk' })

/** Each makes a proof that must be refused. */
const forgeries: Record<string, (at: At) => string> = {
  'a key that is not the one of the session': (at) => makeProof(other, at),
  'the key of the session, and the signature of another one': (at) =>
    signProof({ ...other, jwk: at.key.jwk }, headerOf(at), claimsOf(at)),
  'another method': withClaims(() => ({ htm: 'POST' })),
  'a method in lower case': withClaims(() => ({ htm: 'get' })),
  'no method': withClaims(() => ({ htm: undefined })),
  'another path': withClaims(({ url }) => ({ htu: `${url}/sessions` })),
  'the address of another agency': withClaims(() => ({ htu: `http://rival.localhost${me}` })),
  'the general host': withClaims(() => ({ htu: `http://localhost${me}` })),
  'another scheme': withClaims(({ url }) => ({ htu: url.replace('http:', 'https:') })),
  'another port': withClaims(({ url }) => ({ htu: url.replace('.localhost', '.localhost:81') })),
  'a name in the address': withClaims(({ url }) => ({ htu: url.replace('//', '//ada@') })),
  'only the path': withClaims(() => ({ htu: me })),
  'an address that is none': withClaims(() => ({ htu: 'http://[' })),
  'addresses in a list': withClaims(({ url }) => ({ htu: [url] })),
  'no address': withClaims(() => ({ htu: undefined })),
  'the hash of another token': withClaims(() => ({ ath: hashOf('another token') })),
  'the hash of the token in hex': withClaims(({ token }) => ({
    ath: createHash('sha256').update(token).digest('hex')
  })),
  'no hash of the token': withClaims(() => ({ ath: undefined })),
  'no time': withClaims(() => ({ iat: undefined })),
  'a time in words': withClaims(() => ({ iat: new Date().toISOString() })),
  'a time before all times': withClaims(() => ({ iat: -1 })),
  'no id': withClaims(() => ({ jti: undefined })),
  'an empty id': withClaims(() => ({ jti: '' })),
  'an id of 129 characters': withClaims(() => ({ jti: 'a'.repeat(129) })),
  'an id that is a number': withClaims(() => ({ jti: 7 })),
  'the type of an access token': withHeader(() => ({ typ: 'at+jwt' })),
  'no type': withHeader(() => ({ typ: undefined })),
  'the algorithm none': withHeader(() => ({ alg: 'none' })),
  'the algorithm none, and no signature': (at) => {
    const [, body] = makeProof(at.key, at).split('.')
    return `${encode({ ...headerOf(at), alg: 'none' })}.${body}.`
  },
  'HS256 with the public key as the secret': (at) => {
    const input = `${encode({ ...headerOf(at), alg: 'HS256' })}.${encode(claimsOf(at))}`
    return `${input}.${createHmac('sha256', JSON.stringify(at.key.jwk)).update(input).digest('base64url')}`
  },
  'HS256 with a symmetric key in the proof': (at) => {
    const k = Buffer.alloc(32, 7)
    const header = { typ: 'dpop+jwt', alg: 'HS256', jwk: { kty: 'oct', k: k.toString('base64url') } }
    const input = `${encode(header)}.${encode(claimsOf(at))}`
    return `${input}.${createHmac('sha256', k).update(input).digest('base64url')}`
  },
  'ES256 with a symmetric key': withHeader(() => ({ jwk: { kty: 'oct', k: 'AAAA' } })),
  'an RSA key': (at) => {
    const input = `${encode({ ...headerOf(at), alg: 'RS256', jwk: publicOf(rsa) })}.${encode(claimsOf(at))}`
    return `${input}.${sign('sha256', Buffer.from(input), rsa.privateKey).toString('base64url')}`
  },
  'an RSA key of 16,384 bits that says it is ES256': withHeader(() => ({
    jwk: { kty: 'RSA', e: 'AQAB', n: `v${'A'.repeat(2730)}` }
  })),
  'an Edwards key': withHeader(() => ({ alg: 'EdDSA', jwk: publicOf(edwards) })),
  'a key of P-384': withHeader(() => ({ jwk: publicOf(p384) })),
  'a point that is not on the curve': withHeader(({ key }) => ({ jwk: { ...key.jwk, y: key.jwk.x } })),
  'a coordinate in another spelling': withHeader(({ key }) => ({ jwk: { ...key.jwk, x: `${key.jwk.x}=` } })),
  'coordinates that are numbers': withHeader(({ key }) => ({ jwk: { ...key.jwk, x: 1, y: 2 } })),
  'the private key': withHeader(({ key }) => ({ jwk: key.private.export({ format: 'jwk' }) })),
  'a secret beside the public key': withHeader(({ key }) => ({ jwk: { ...key.jwk, k: 'AAAA' } })),
  'no key': withHeader(() => ({ jwk: undefined })),
  'a key that is null': withHeader(() => ({ jwk: null })),
  'an extension that must be understood': withHeader(() => ({ crit: ['b64'], b64: false })),
  'a header that is a list': (at) => signProof(at.key, [headerOf(at)], claimsOf(at)),
  'a header that is no JSON': (at) => signProof(at.key, '{', claimsOf(at)),
  'a content that is no JSON': (at) => signProof(at.key, headerOf(at), '{'),
  'a content that is a list': (at) => signProof(at.key, headerOf(at), [claimsOf(at)]),
  'a content that is null': (at) => signProof(at.key, headerOf(at), 'null'),
  'a signature in DER': (at) => {
    const [head, body] = makeProof(at.key, at).split('.')
    const der = sign('sha256', Buffer.from(`${head}.${body}`), at.key.private)
    return `${head}.${body}.${der.toString('base64url')}`
  },
  'a signature that is too short': (at) => makeProof(at.key, at).slice(0, -1),
  'a signature of zeros': (at) => `${makeProof(at.key, at).split('.', 2).join('.')}.${'A'.repeat(86)}`,
  'a part more': (at) => `${makeProof(at.key, at)}.AAAA`,
  'two proofs in one header': (at) => `${makeProof(at.key, at)}, ${makeProof(at.key, at)}`,
  'more than 4,096 characters': withClaims(() => ({ more: 'a'.repeat(4096) })),
  'a header of more than 1,024 characters': withHeader(() => ({ kid: 'a'.repeat(1024) })),
  'the access token': ({ token }) => token,
  nothing: () => ''
}

/** Each makes a proof whose nonce is not a living one of this server. */
const staleNonces: Record<string, (at: At) => unknown> = {
  'no nonce': () => undefined,
  'an empty nonce': () => '',
  'a nonce that is a number': () => 7,
  'a nonce of somebody else': () => Buffer.alloc(22, 7).toString('base64url'),
  'the nonce of a time to come, with the MAC of now': ({ nonce }) => {
    const bytes = Buffer.from(nonce, 'base64url')
    bytes.writeUIntBE(seconds() + 10, 0, 6)
    return bytes.toString('base64url')
  },
  'a nonce in another spelling': ({ nonce }) => `${nonce.slice(0, -1)}${nonce.endsWith('A') ? 'B' : 'A'}`,
  'a nonce with more behind it': ({ nonce }) => `${nonce}AAAA`
}

t.test('somebody who has stolen tokens', async (t) => {
  const app = await startApp(t, { RATE_LIMIT: '100000/1m', RATE_LIMIT_AUTH: '100000/1m' })
  const acme = await createTenant(app, 'acme')
  await createTenant(app, 'rival')
  const phone = createDevice(app)
  const login = () => phone.send(acme.host, post('/auth/login', { email: acme.owner.email, password }))
  await login()
  const tokens: Tokens = (await login()).json()
  const token = tokens.access_token
  const url = `http://${acme.host}${me}`
  const at = (): At => ({ key: phone.key, method: 'GET', url, token, nonce: phone.nonce ?? '' })
  const ask = (headers: Record<string, string>, host = acme.host) => send(app, host, { url: me, headers })
  const use = (dpop: string, host?: string) => ask({ authorization: `DPoP ${token}`, dpop }, host)
  const refused = (reply: Reply, code: string, what: string) => {
    t.match(reply.json(), { status: 401, code }, what)
    t.match(reply.headers['www-authenticate'], /^DPoP /, what)
  }
  t.equal((await use(makeProof(phone.key, at()))).statusCode, 200, 'the honest proof is accepted')

  t.test('succeeds in none of the ways to send the tokens alone', async (t) => {
    const { refresh_token } = tokens
    const ways: Record<string, () => Promise<Reply>> = {
      'as a bearer token': () => ask(bearer(token)),
      'as a bearer token in capitals': () => ask({ authorization: `BEARER ${token}` }),
      'with the scheme': () => ask({ authorization: `DPoP ${token}` }),
      'with the scheme in lower case': () => ask({ authorization: `dpop ${token}` }),
      'as a bearer token with a proof of the right key': () =>
        ask({ ...bearer(token), dpop: makeProof(phone.key, at()) }),
      'to switch': () => send(app, acme.host, post('/auth/switch', { tenant: 'acme' }, bearer(token))),
      'to sign out': () => send(app, acme.host, post('/auth/logout', undefined, bearer(token))),
      'to sign out with the scheme': () =>
        send(app, acme.host, post('/auth/logout', undefined, { authorization: `DPoP ${token}` })),
      'to sign out by the refresh token': () => send(app, acme.host, post('/auth/logout', { refresh_token })),
      'to refresh': () => send(app, acme.host, post('/auth/refresh', { refresh_token })),
      'to refresh on the general host': () => send(app, 'localhost', post('/auth/refresh', { refresh_token })),
      'for a link to files': () => send(app, acme.host, { url: '/api/v1/files', headers: bearer(token) })
    }
    const before = await allRows(app.database, 'select * from sessions where id = $1', [sidOf(tokens)])
    const statuses = await Promise.all(
      Object.entries(ways).map(async ([way, go]) => {
        const reply = await go()
        t.match(reply.json(), { status: 401 }, way)
        return reply.statusCode
      })
    )
    t.equal(statuses.filter((status) => status < 400).length, 0, `0 of ${statuses.length} succeeded`)
    t.strictSame(
      await allRows(app.database, 'select * from sessions where id = $1', [sidOf(tokens)]),
      before,
      'and the session is as it was'
    )
  })

  t.test('can forge no proof', async (t) => {
    for (const [name, forge] of Object.entries(forgeries)) refused(await use(forge(at())), 'invalid_dpop_proof', name)
    t.equal((await use(makeProof(phone.key, at()))).statusCode, 200, 'the honest proof is still accepted')
  })

  t.test('has no proofs from before', async (t) => {
    for (const [name, nonceOf] of Object.entries(staleNonces)) {
      const reply = await use(makeProof(phone.key, at(), { nonce: nonceOf(at()) }))
      refused(reply, 'use_dpop_nonce', name)
      t.type(reply.headers['dpop-nonce'], 'string', name)
    }
  })

  t.test('can use no proof again, nor elsewhere', async (t) => {
    const proof = makeProof(phone.key, at())
    const replies = await Promise.all(Array.from({ length: 50 }, () => use(proof)))
    t.equal(replies.filter(({ statusCode }) => statusCode === 200).length, 1, 'of 50 at once one is accepted')
    refused(await use(proof), 'invalid_dpop_proof', 'nor later')
    const [head, body, signature = ''] = proof.split('.')
    const bytes = Buffer.from(signature, 'base64url')
    const order = BigInt('0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551')
    const s = (order - BigInt(`0x${bytes.toString('hex', 32)}`)).toString(16).padStart(64, '0')
    const twin = Buffer.concat([bytes.subarray(0, 32), Buffer.from(s, 'hex')]).toString('base64url')
    refused(await use(`${head}.${body}.${twin}`), 'invalid_dpop_proof', 'nor with the other signature that is valid')
    refused(
      await use(makeProof(phone.key, at()), 'localhost'),
      'invalid_dpop_proof',
      'a proof for the host of the agency, on the general host'
    )
    const elsewhere = makeProof(phone.key, at())
    const reply = await send(app, acme.host, {
      url: '/api/v1/tenant',
      headers: { authorization: `DPoP ${token}`, dpop: elsewhere }
    })
    refused(reply, 'invalid_dpop_proof', 'a proof for another path')
  })

  t.test('can send no two proofs of which each layer takes another', async (t) => {
    await listen(app)
    const headers = [`Host: ${acme.host}`, `Authorization: DPoP ${token}`]
    const [one, two] = [makeProof(phone.key, at()), makeProof(other, at())]
    const raw = await sendRaw(app, rawRequest(`GET ${me} HTTP/1.1`, ...headers, `DPoP: ${one}`, `DPoP: ${two}`))
    t.match(raw.body, { status: 401, code: 'invalid_dpop_proof' })
  })

  t.test('ends nothing with the refresh token and a key of their own', async (t) => {
    const thief = createDevice(app)
    const { refresh_token } = tokens
    for (let n = 0; n < 3; n++) {
      refused(await thief.send(acme.host, post('/auth/refresh', { refresh_token })), 'invalid_dpop_proof', 'to refresh')
      refused(await thief.send(acme.host, post('/auth/logout', { refresh_token })), 'invalid_dpop_proof', 'to sign out')
      const out = await thief.send(acme.host, post('/auth/logout', undefined), tokens)
      refused(out, 'invalid_dpop_proof', 'to sign out by the access token')
    }
    const renewed = await phone.send(acme.host, post('/auth/refresh', { refresh_token }))
    t.match(renewed.json(), { token_type: 'DPoP' }, 'the device goes on')
    await allRows(app.database, "update sessions set rotated_at = now() - interval '2 minutes'")
    refused(await thief.send(acme.host, post('/auth/refresh', { refresh_token })), 'invalid_dpop_proof', 'a used one')
    t.equal((await phone.send(acme.host, me, renewed.json())).statusCode, 200)
    const reused = await phone.send(acme.host, post('/auth/refresh', { refresh_token }))
    t.match(reused.json(), { code: 'refresh_token_reused' }, 'with the key a used token still ends the session')
  })

  t.test('cannot change the key of a session, nor take it away', async (t) => {
    const row = 'where key_thumbprint is not null'
    for (const value of ['null', `'${other.thumbprint}'`]) {
      const changed = allRows(app.database, `update sessions set key_thumbprint = ${value} ${row}`)
      await t.rejects(changed, /the key of a session cannot change/)
    }
    const bound = `update sessions set key_thumbprint = '${other.thumbprint}' where key_thumbprint is null`
    await t.rejects(allRows(app.database, bound), /the key of a session cannot change/)
  })
})

import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { asOwner, createTenant, password, post, send, startApp } from './harness.ts'
import { createRandom } from './random.ts'
import { me, sendAuthorization } from './requests.ts'
import { decode, encode, type Json, makeToken, rawRequest, seconds, sendRaw, singleSecret } from './tokens.ts'

t.test('what an access token must be', async (t) => {
  const app = await startApp(t, { JWT_SECRET: singleSecret })
  const acme = await createTenant(app, 'acme')
  const token = acme.owner.tokens.access_token
  const { header, claims } = decode(token)
  const refused = async (t: Test, forged: string, name: string, code = 'invalid_token') => {
    const reply = await sendAuthorization(app, `Bearer ${forged}`)
    t.match(reply.json(), { status: 401, code }, name)
    t.match(reply.headers['www-authenticate'], /^Bearer .*error="invalid_token"/, name)
  }
  const withClaims = (change: Json) => makeToken(header, { ...claims, ...change }, singleSecret)

  t.test('ours is good, and so is one made like ours: what follows fails for its own reason', async (t) => {
    t.equal((await sendAuthorization(app, `Bearer ${token}`)).statusCode, 200)
    t.equal((await sendAuthorization(app, `Bearer ${withClaims({ jti: 'another' })}`)).statusCode, 200)
    t.strictSame(header, { alg: 'HS256', typ: 'at+jwt', kid: header.kid })
    t.equal(String(claims.iss), 'https://api.localhost')
    t.equal(claims.aud, 'localhost')
    t.strictSame(Object.keys(claims).sort(), [
      'aud',
      'email',
      'exp',
      'iat',
      'iss',
      'jti',
      'role',
      'sid',
      'tenant_id',
      'user_id'
    ])
  })

  t.test('without a token there is a challenge and no error code', async (t) => {
    const reply = await send(app, 'localhost', me)
    t.match(reply.json(), { status: 401, code: 'unauthenticated' })
    t.equal(reply.headers['www-authenticate'], 'Bearer realm="aggios", DPoP algs="ES256"')
    t.equal(reply.headers['content-type'], 'application/problem+json; charset=utf-8')
  })

  t.test('of 1,000 mutants of a token that is in the cache none is accepted', async (t) => {
    t.equal((await sendAuthorization(app, `Bearer ${token}`)).statusCode, 200)
    const accepted: string[] = []
    const odd: string[] = []
    for (const mutant of mutants(token, 1000)) {
      const reply = await sendAuthorization(app, `Bearer ${mutant}`)
      if (reply.statusCode === 200) accepted.push(mutant)
      else if (reply.statusCode !== 401) odd.push(`${reply.statusCode} ${mutant}`)
    }
    t.strictSame(accepted, [])
    t.strictSame(odd, [])
  })

  t.test('each spelling of the same bytes but ours is refused', async (t) => {
    const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
    const last = alphabet.indexOf(token.at(-1) as string)
    const spellings = [1, 2, 3].map((bits) => token.slice(0, -1) + alphabet[last ^ bits])
    const [head, body, signature = ''] = token.split('.') as [string, string, string]
    spellings.push(`${token}=`)
    for (const padded of [`${head}=.${body}.${signature}`, `${head}.${body}==.${signature}`]) {
      t.equal((await sendAuthorization(app, `Bearer ${padded}`)).statusCode, 401)
    }
    // a signature that differs in the two base64 alphabets
    for (let count = 0; ; count++) {
      const other = withClaims({ jti: `alphabet ${count}` })
      const [a, b, c = ''] = other.split('.')
      if (!/[-_]/.test(c)) continue
      t.equal((await sendAuthorization(app, `Bearer ${other}`)).statusCode, 200)
      spellings.push(`${a}.${b}.${c.replaceAll('-', '+').replaceAll('_', '/')}`)
      break
    }
    for (const spelling of spellings) {
      t.equal(Buffer.from(spelling.split('.')[2] as string, 'base64url').length, 32, 'a whole signature')
      await refused(t, spelling, `…${spelling.slice(-12)}`)
    }
  })

  t.test('no other algorithm, and none, is taken, with our own secret too', async (t) => {
    for (const alg of [
      'none',
      'None',
      'nOnE',
      'NONE',
      '',
      'hs256',
      'HS384',
      'HS512',
      'RS256',
      'ES256',
      'EdDSA',
      'dir'
    ]) {
      await refused(t, makeToken({ ...header, alg }, claims, singleSecret), `alg ${alg} over HS256`)
      await refused(t, `${encode({ ...header, alg })}.${encode(claims)}.`, `alg ${alg} without a signature`)
    }
    await refused(t, makeToken({ ...header, alg: 'HS384' }, claims, singleSecret, 'sha384'), 'a genuine HS384')
    await refused(t, makeToken({ ...header, alg: 'HS512' }, claims, singleSecret, 'sha512'), 'a genuine HS512')
    await refused(t, makeToken(header, claims, singleSecret, 'sha512'), 'HS512 under the name of HS256')
    for (const alg of [undefined, null, ['HS256'], { alg: 'HS256' }, 256, true]) {
      await refused(t, makeToken({ ...header, alg }, claims, singleSecret), `alg ${JSON.stringify(alg)}`)
    }
  })

  t.test('a header that asks for more than we do is refused, though its signature is right', async (t) => {
    for (const change of [
      { jku: 'http://127.0.0.1:1/keys' },
      { x5u: 'http://127.0.0.1:1/cert' },
      { jwk: { kty: 'oct', k: 'AA' } },
      { x5c: ['MIIB'] },
      { crit: ['exp'] },
      { crit: ['exp', 'exp'] },
      { crit: ['alg'] },
      { crit: ['unheard-of'], 'unheard-of': true },
      { crit: [] },
      { b64: false },
      { zip: 'DEF' },
      { cty: 'JWT' },
      { typ: 'JWT' },
      { typ: 'at+JWT' },
      { typ: undefined },
      { kid: undefined },
      { kid: '' },
      { kid: '../../../../dev/null' },
      { kid: "' or 1=1 --" },
      { kid: 'unknown-key' },
      { kid: [header.kid] },
      { kid: { toString: header.kid } },
      { kid: `${header.kid} of any age` },
      { kid: '__proto__' },
      { kid: 'constructor' },
      { kid: 'sign' },
      { kid: 'options' }
    ]) {
      await refused(t, makeToken({ ...header, ...change }, claims, singleSecret), JSON.stringify(change))
    }
    for (const text of [
      '',
      'null',
      '[]',
      '"HS256"',
      '1',
      '{',
      `{"alg":"HS256","__proto__":{"crit":["a"]},"kid":"${header.kid}"}`
    ]) {
      await refused(t, makeToken(text, claims, singleSecret), `the header ${text}`)
    }
  })

  t.test('guessable keys sign nothing', async (t) => {
    const guesses = [
      '',
      '\0',
      'secret',
      'your-256-bit-secret',
      'changeme',
      'change-me',
      'jwt_secret',
      'aggios',
      'null',
      'undefined'
    ]
    for (const guess of [
      ...guesses,
      String(header.kid),
      singleSecret.slice(0, -1),
      `${singleSecret} `,
      singleSecret.toUpperCase()
    ]) {
      await refused(t, makeToken(header, claims, guess), `the key ${guess}`)
    }
    await refused(t, makeToken({ ...header, kid: 'unknown-key' }, claims, ''), 'an unknown key id and the empty key')
  })

  t.test('every claim is demanded, and of its own kind', async (t) => {
    for (const name of Object.keys(claims)) {
      await refused(t, withClaims({ [name]: undefined }), `without ${name}`)
      await refused(t, withClaims({ [name]: null }), `${name} null`)
      await refused(t, withClaims({ [name]: [claims[name]] }), `${name} in an array`)
      await refused(t, withClaims({ [name]: {} }), `${name} an object`)
      await refused(t, withClaims({ [name]: true }), `${name} true`)
    }
    for (const name of ['user_id', 'tenant_id', 'sid']) {
      for (const value of [
        '',
        'x',
        7,
        String(claims[name]).toUpperCase(),
        `${claims[name]}\n`,
        `{${claims[name]}}`,
        '*'
      ]) {
        await refused(t, withClaims({ [name]: value }), `${name} ${JSON.stringify(value)}`)
      }
    }
    for (const role of ['', 'Owner', 'root', 'superuser', 'owner ', 0])
      await refused(t, withClaims({ role }), `role ${role}`)
    await refused(t, withClaims({ iss: 'https://api.localhost/' }), 'iss with a slash')
    await refused(t, withClaims({ iss: 'http://api.localhost' }), 'iss of http')
    await refused(t, withClaims({ iss: ['https://api.localhost', 'https://evil.example'] }), 'two issuers')
    await refused(t, withClaims({ iss: 'https://api.localhost.evil.example' }), 'iss that only begins right')
    await refused(t, withClaims({ aud: 'aggios.app' }), 'aud of another deployment')
    await refused(t, withClaims({ aud: ['localhost', 'evil.example'] }), 'two audiences')
    await refused(t, withClaims({ aud: 'xlocalhost' }), 'aud that only ends right')
    await refused(t, withClaims({ jti: '' }), 'an empty jti')
    for (const text of ['', 'null', '[]', '1', '"x"', '{', JSON.stringify([claims])]) {
      await refused(t, makeToken(header, text, singleSecret), `claims ${text.slice(0, 10)}`)
    }
  })

  t.test('times must be whole numbers of our time', async (t) => {
    const now = seconds()
    await refused(t, withClaims({ exp: now - 1 }), 'expired', 'token_expired')
    for (const exp of [String(now + 60), '', 1e300, Number.MAX_SAFE_INTEGER, now + 60.5, [now + 60]]) {
      await refused(t, withClaims({ exp }), `exp ${exp}`)
    }
    for (const exp of [0, -1, -1e300]) {
      const reply = await sendAuthorization(app, `Bearer ${withClaims({ exp })}`)
      t.equal(reply.statusCode, 401, `exp ${exp}`)
    }
    const raw = (member: string) => {
      const text = JSON.stringify({ ...claims, exp: undefined }).slice(0, -1)
      return makeToken(header, `${text},${member}}`, singleSecret)
    }
    for (const member of ['"exp":1e999', '"exp":-1e999', '"exp":NaN', '"exp":Infinity', '"exp":"NaN"']) {
      t.equal((await sendAuthorization(app, `Bearer ${raw(member)}`)).statusCode, 401, member)
    }
    await refused(t, withClaims({ nbf: now + 3600 }), 'not yet')
    for (const iat of [now + 3600, String(now), now + 0.5, 1e300]) await refused(t, withClaims({ iat }), `iat ${iat}`)
    t.equal(
      (await sendAuthorization(app, `Bearer ${withClaims({ iat: now + 30 })}`)).statusCode,
      200,
      'a clock may be off by little'
    )
  })

  t.test('no token of another purpose is an access token, nor the reverse', async (t) => {
    await refused(t, acme.owner.tokens.refresh_token, 'a refresh token')
    await refused(t, app.cursors.issue(`sessions ${acme.owner.id}`, [acme.owner.id]), 'a cursor')
    const reply = await send(app, 'localhost', post('/auth/refresh', { refresh_token: token }))
    t.match(reply.json(), { status: 401, code: 'invalid_refresh_token' })
    const list = await sendAuthorization(app, `Bearer ${token}`)
    t.equal(list.statusCode, 200)
    for (const cursor of [token, acme.owner.tokens.refresh_token]) {
      const page = await acme.send(`/api/v1/users/me/sessions?cursor=${cursor}`)
      t.match(page.json(), { status: 400, code: 'invalid_cursor' })
    }
  })

  t.test('a token in the query or in a form is not looked at', async (t) => {
    t.equal((await send(app, 'localhost', `${me}?access_token=${token}`)).json().code, 'unauthenticated')
    const form = {
      method: 'PATCH',
      url: me,
      headers: { 'content-type': 'application/x-www-form-urlencoded' },
      payload: `access_token=${token}`
    } as const
    t.equal((await send(app, 'localhost', form)).json().code, 'unauthenticated')
    t.equal(
      (await send(app, 'localhost', { url: me, cookies: { access_token: token } })).json().code,
      'unauthenticated'
    )
    t.equal((await acme.send(`${me}?access_token=${token}`)).json().code, 'validation_failed', 'two ways at once')
  })

  t.test('the scheme is read in any case, and nothing else is stretched', async (t) => {
    for (const scheme of ['Bearer', 'bearer', 'BEARER', 'bEaReR']) {
      t.equal((await sendAuthorization(app, `${scheme} ${token}`)).statusCode, 200, scheme)
    }
    for (const value of [
      token,
      `Bearer  ${token}`,
      `Bearer\t${token}`,
      `Bearer${token}`,
      `Bearer ${token} x`,
      `Bearer ${token},Bearer ${token}`,
      `Bearer ${token}, ${token}`,
      `Basic ${Buffer.from(`${acme.owner.email}:${password}`).toString('base64')}`,
      `Token ${token}`,
      `n1 Bearer ${token}`,
      'Bearer',
      'Bearer ',
      'Bearer é',
      'Bearer "quoted"'
    ]) {
      const reply = await sendAuthorization(app, value)
      t.match(reply.json(), { status: 401, code: 'unauthenticated' }, value.slice(0, 30))
    }
    for (const value of ['x', '.', '..', '...', 'a.b.c', 'a.b', 'a.b.c.d', 'eyJ.eyJ.eyJ', `${token}.`, `.${token}`]) {
      t.match(
        (await sendAuthorization(app, `Bearer ${value}`)).json(),
        { status: 401, code: 'invalid_token' },
        value.slice(0, 30)
      )
    }
    await refused(t, 'x'.repeat(8192), '8 KiB')
    await refused(t, withClaims({ padding: 'x'.repeat(8192) }), '8 KiB, rightly signed')
  })

  t.test('odd Authorization headers on the wire never end in a 5xx', async (t) => {
    await app.listen({ port: 0, host: '127.0.0.1' })
    const get = (...headers: string[]) => sendRaw(app, rawRequest(`GET ${me} HTTP/1.1`, 'Host: localhost', ...headers))
    t.equal((await get(`Authorization: Bearer ${token}`)).status, 200)
    t.equal((await get(`aUTHORIZATION:Bearer ${token}`)).status, 200)
    for (const headers of [
      [`Authorization: Bearer ${token}`, `Authorization: Bearer ${token}`],
      ['Authorization: Bearer x', `authorization: Bearer ${token}`],
      [`Authorization: Bearer ${token}`, 'Authorization:'],
      [`Authorization: Bearer ${token}\0`],
      [`Authorization: Bearer \0${token}`],
      [`Authorization : Bearer ${token}`],
      [`Authorization: Bearer ${token.slice(0, 40)}`, ` ${token.slice(40)}`]
    ]) {
      const reply = await get(...headers)
      t.match(
        reply,
        { status: 400, body: { status: 400, code: 'malformed_request' } },
        headers.join(' | ').slice(0, 60)
      )
    }
    for (const value of ['Bearer \xff\xfe', `Bearer ${token}\xa0`, 'Bearer \x7f', 'Bearer\xa0x']) {
      t.ok([400, 401].includes((await get(`Authorization: ${value}`)).status), JSON.stringify(value).slice(0, 40))
    }
    t.equal((await get(`Authorization: Bearer ${'x'.repeat(20_000)}`)).status, 431)
  })

  t.test('what the token says of the e-mail decides nothing', async (t) => {
    await asOwner(app.database, acme.id, acme.owner.id, [
      ['update users set email = $1, version = version + 1 where id = $2', ['new@acme.example', acme.owner.id]]
    ])
    await app.revocations.readNow()
    const reply = await sendAuthorization(app, `Bearer ${token}`)
    t.match(reply.json(), { id: acme.owner.id, email: 'new@acme.example' })
    const foreign = withClaims({ email: 'somebody@rival.example' })
    t.match((await sendAuthorization(app, `Bearer ${foreign}`)).json(), {
      id: acme.owner.id,
      email: 'new@acme.example'
    })
  })
})

t.test('a token that is remembered does not outlive itself', async (t) => {
  const app = await startApp(t, { ACCESS_TOKEN_TTL: '5' })
  const acme = await createTenant(app, 'acme')
  const tokens = await acme.signIn()
  t.equal(tokens.expires_in, 5)
  const exp = decode(tokens.access_token).claims.exp as number
  const replies: { askedAt: number; at: number; code: number | string }[] = []
  const later = () => replies.filter(({ askedAt }) => askedAt > exp * 1000 + 500)
  while (later().length <= 10) {
    const askedAt = Date.now()
    const reply = await sendAuthorization(app, `Bearer ${tokens.access_token}`)
    replies.push({ askedAt, at: Date.now(), code: reply.statusCode === 200 ? 200 : reply.json().code })
    await sleep(20)
  }
  const early = replies.filter(({ at }) => at < exp * 1000)
  const late = later()
  t.ok(early.length > 10, 'asked often on both sides of the end')
  t.strictSame([...new Set(early.map(({ code }) => code))], [200], 'good until the end')
  t.strictSame([...new Set(late.map(({ code }) => code))], ['token_expired'], 'and not after it')
  t.match(
    (await sendAuthorization(app, `Bearer ${tokens.access_token}`)).headers['www-authenticate'],
    /error="invalid_token"/
  )
})

t.test('two people at once are never taken for each other', async (t) => {
  const app = await startApp(t)
  const people = await Promise.all(['acme', 'rival', 'third', 'fourth'].map((slug) => createTenant(app, slug)))
  const wrong: string[] = []
  let right = 0
  for (let round = 0; round < 10; round++) {
    await Promise.all(
      Array.from({ length: 200 }, async (_, index) => {
        const person = people[index % people.length] as (typeof people)[number]
        const reply = await sendAuthorization(app, `Bearer ${person.owner.tokens.access_token}`)
        const { id, tenant_id, email } = reply.json()
        if (id === person.owner.id && tenant_id === person.id && email === person.owner.email) right++
        else wrong.push(`${person.slug}: ${reply.body}`)
      })
    )
  }
  t.strictSame(wrong, [])
  t.equal(right, 2000)

  // the header and claims of one token with the signature of another, while both are cached
  const [one = '', two = ''] = people.map((person) => person.owner.tokens.access_token)
  const crossed = [...one.split('.').slice(0, 2), two.split('.')[2]].join('.')
  t.match((await sendAuthorization(app, `Bearer ${crossed}`)).json(), { status: 401, code: 'invalid_token' })
})

/** Damaged copies of a token: of every kind, at every place, and none equal to the original. */
function mutants(token: string, count: number): string[] {
  const random = createRandom(1)
  const pick = <T>(from: ArrayLike<T>) => from[Math.floor(random() * from.length)] as T
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  const replace = (text: string, at: number, by: string) => text.slice(0, at) + by + text.slice(at + 1)
  const kinds: ((parts: string[], at: number, part: number) => string)[] = [
    (_, at) => replace(token, at, pick(alphabet)),
    (_, at) => replace(token, at, ''),
    (_, at) => replace(token, at, token[at] + pick(alphabet)),
    (_, at) => replace(token, at, pick('+/=~.%')),
    (_, at) => token.slice(0, at),
    (_, at) => token.slice(at),
    (_, at) => replace(token, at, (token[at] as string).toLowerCase()),
    (_, at) => replace(token, at, (token[at] as string).toUpperCase()),
    (parts, _, part) => parts.map((text, index) => (index === part ? flipBit(text) : text)).join('.'),
    (parts, _, part) => parts.map((text, index) => (index === part ? `${text}=` : text)).join('.'),
    (parts) => [...parts, pick(parts)].join('.'),
    (parts, _, part) => parts.toSpliced(part, 1).join('.')
  ]
  const flipBit = (text: string) => {
    const bytes = Buffer.from(text, 'base64url')
    const at = Math.floor(random() * bytes.length)
    bytes[at] = (bytes[at] as number) ^ (1 << Math.floor(random() * 8))
    return bytes.toString('base64url')
  }
  const made: string[] = []
  for (let index = 0; made.length < count; index++) {
    const kind = kinds[index % kinds.length] as (typeof kinds)[number]
    const mutant = kind(token.split('.'), Math.floor(random() * token.length), Math.floor(random() * 3))
    if (mutant !== token) made.push(mutant)
  }
  return made
}

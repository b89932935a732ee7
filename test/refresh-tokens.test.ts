import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import {
  addMember,
  allRows,
  asOwner,
  createTenant,
  post,
  send,
  startApp,
  type TestApp,
  type Tokens
} from './harness.ts'
import { createRandom } from './random.ts'
import { me } from './requests.ts'
import { refresh, refused, rotate, sessions } from './session-requests.ts'
import { decode, sidOf, singleSecret } from './tokens.ts'

function sessionRow(app: TestApp, sid: string) {
  return allRows(app.database, 'select * from sessions where id = $1', [sid]).then(([row]) => row)
}

t.test('refreshing', async (t) => {
  const app = await startApp(t, { JWT_SECRET: singleSecret })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')

  t.test('gives a new pair of the same session', async (t) => {
    const first = await acme.signIn()
    const reply = await refresh(app, first.refresh_token)
    t.equal(reply.statusCode, 200)
    t.equal(reply.headers['cache-control'], 'no-store')
    const second: Tokens = reply.json()
    t.strictSame(Object.keys(second).sort(), ['access_token', 'expires_in', 'refresh_token', 'token_type'])
    t.not(second.refresh_token, first.refresh_token)
    t.not(decode(second.access_token).claims.jti, decode(first.access_token).claims.jti)
    t.equal(sidOf(second), sidOf(first))
    t.equal((await acme.with(second.access_token, me)).statusCode, 200)
    t.equal((await acme.with(first.access_token, me)).statusCode, 200, 'the access token in hand stays good')
  })

  t.test('twice, as after a lost reply, gives the same successor', async (t) => {
    const first = await acme.signIn()
    const [second, again, onceMore] = [
      await rotate(app, first.refresh_token),
      await rotate(app, first.refresh_token),
      await rotate(app, first.refresh_token)
    ]
    t.equal(again.refresh_token, second.refresh_token)
    t.equal(onceMore.refresh_token, second.refresh_token)
    t.equal((await sessionRow(app, sidOf(first))).counter, 1)
    const third = await rotate(app, second.refresh_token)
    t.not(third.refresh_token, second.refresh_token)
    t.equal((await sessionRow(app, sidOf(first))).revoked_at, null)
  })

  t.test('with the grandparent ends the family, though it is within the grace', async (t) => {
    const first = await acme.signIn()
    const second = await rotate(app, first.refresh_token)
    const third = await rotate(app, second.refresh_token)
    refused(t, await refresh(app, first.refresh_token), 'refresh_token_reused')
    t.ok((await sessionRow(app, sidOf(first))).revoked_at, 'committed, though the answer is an error')
    for (const tokens of [first, second, third]) {
      refused(t, await refresh(app, tokens.refresh_token), 'session_revoked')
      refused(t, await acme.with(tokens.access_token, me), 'session_revoked')
    }
    t.equal((await acme.send(me)).statusCode, 200, 'another session of the same person goes on')
  })

  t.test('on 50 connections at once gives one successor', async (t) => {
    const first = await acme.signIn()
    const replies = await Promise.all(Array.from({ length: 50 }, () => refresh(app, first.refresh_token)))
    t.strictSame([...new Set(replies.map(({ statusCode }) => statusCode))], [200])
    t.equal(new Set(replies.map((reply) => reply.json().refresh_token)).size, 1)
    t.match(await sessionRow(app, sidOf(first)), { counter: 1, revoked_at: null })
    const audit = "select from audit_events where session_id = $1 and action = 'session.refresh_reused'"
    t.equal((await allRows(app.database, audit, [sidOf(first)])).length, 0)
  })

  t.test('on two replicas at once gives one successor', async (t) => {
    const other = await startApp(t, { JWT_SECRET: singleSecret }, app.database)
    const first = await acme.signIn()
    const replies = await Promise.all(
      Array.from({ length: 40 }, (_, index) => refresh(index % 2 ? app : other, first.refresh_token))
    )
    t.strictSame([...new Set(replies.map(({ statusCode }) => statusCode))], [200])
    t.equal(new Set(replies.map((reply) => reply.json().refresh_token)).size, 1)
  })

  t.test('while a stolen token is found out leaves nobody with a live one', async (t) => {
    const first = await acme.signIn()
    const second = await rotate(app, first.refresh_token)
    const third = await rotate(app, second.refresh_token)
    const shown = [third, first, third, first, third, second, third]
    const replies = await Promise.all(shown.map((tokens) => refresh(app, tokens.refresh_token)))
    t.ok((await sessionRow(app, sidOf(first))).revoked_at)
    const given: Tokens[] = replies.filter(({ statusCode }) => statusCode === 200).map((reply) => reply.json())
    for (const tokens of given) {
      refused(t, await refresh(app, tokens.refresh_token), 'session_revoked')
      refused(t, await acme.with(tokens.access_token, me), 'session_revoked')
    }
    t.ok(replies.some((reply) => reply.json().code === 'refresh_token_reused'))
  })

  t.test('with a forged token ends nothing', async (t) => {
    const tokens = await acme.signIn()
    const sid = sidOf(tokens)
    const before = await sessionRow(app, sid)
    const genuine = tokens.refresh_token
    const random = createRandom(2)
    const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
    const forged = Array.from({ length: 300 }, () => {
      const at = Math.floor(random() * genuine.length)
      return genuine.slice(0, at) + alphabet[Math.floor(random() * 64)] + genuine.slice(at + 1)
    }).filter((token) => token !== genuine)
    const last = alphabet.indexOf(genuine.at(-1) as string)
    forged.push(...[1, 2, 3].map((bits) => genuine.slice(0, -1) + alphabet[last ^ bits]))
    const bytes = Buffer.from(genuine, 'base64url')
    const withCounter = Buffer.from(bytes)
    withCounter.writeUInt32BE(7, bytes.length - 36)
    forged.push(withCounter.toString('base64url'), bytes.toString('base64'), bytes.toString('hex'))
    forged.push(
      `${genuine}=`,
      ` ${genuine}`,
      `${genuine}\n`,
      genuine.slice(1),
      genuine.slice(0, -1),
      'x',
      '\0',
      'é'.repeat(132)
    )
    forged.push(tokens.access_token.slice(0, 1024))
    // valid parts of two tokens, of two tenants
    const theirs = rival.owner.tokens.refresh_token
    forged.push(genuine.slice(0, 80) + theirs.slice(80), theirs.slice(0, 80) + genuine.slice(80))
    for (const token of forged.filter((each) => each !== genuine)) {
      const reply = await refresh(app, token)
      if (reply.json().code !== 'invalid_refresh_token') t.fail(`${token}: ${reply.body}`)
    }
    t.strictSame(await sessionRow(app, sid), before)
    t.equal((await refresh(app, genuine)).statusCode, 200)
  })

  t.test('takes a text and nothing else', async (t) => {
    for (const body of [
      {},
      { refresh_token: null },
      { refresh_token: 1 },
      { refresh_token: '' },
      { refresh_token: ['x'] }
    ]) {
      t.match((await send(app, 'localhost', post('/auth/refresh', body))).json(), {
        status: 400,
        code: 'validation_failed'
      })
    }
    const extra = post('/auth/refresh', { refresh_token: acme.owner.tokens.refresh_token, tenant_id: rival.id })
    t.match((await send(app, 'localhost', extra)).json(), { status: 400, errors: [{ path: '/body/tenant_id' }] })
  })

  t.test('on the host of another agency is refused, and nothing has changed', async (t) => {
    const tokens = await acme.signIn()
    const before = await sessionRow(app, sidOf(tokens))
    const reply = await refresh(app, tokens.refresh_token, rival.host)
    t.match(reply.json(), { status: 403, code: 'tenant_mismatch' })
    t.strictSame(await sessionRow(app, sidOf(tokens)), before)
    t.equal((await refresh(app, tokens.refresh_token, acme.host)).statusCode, 200, 'at home it is good still')
    const old = await refresh(app, tokens.refresh_token, rival.host)
    t.match(old.json(), { status: 403, code: 'tenant_mismatch' }, 'a used one too')
    t.match(await sessionRow(app, sidOf(tokens)), { counter: 1, revoked_at: null })
  })

  t.test('of somebody who was disabled or removed is refused', async (t) => {
    await addMember(app, acme, rival.owner.id, 'member')
    const reply = await rival.send(post('/auth/switch', { tenant: 'acme' }))
    const visitor: Tokens = reply.json()
    const set = (value: string) =>
      asOwner(app.database, rival.id, rival.owner.id, [
        [`update users set disabled_at = ${value} where id = $1`, [rival.owner.id]]
      ])
    await set('now()')
    refused(t, await refresh(app, visitor.refresh_token), 'session_revoked', 'disabled')
    refused(t, await rival.send(post('/auth/switch', { tenant: 'acme' })), 'session_revoked', 'disabled')
    await set('null')
    const again = await rotate(app, visitor.refresh_token)
    await asOwner(app.database, acme.id, rival.owner.id, [
      ['delete from memberships where user_id = $1', [rival.owner.id]]
    ])
    refused(t, await refresh(app, again.refresh_token), 'invalid_refresh_token', 'removed')
  })
})

t.test('after the grace', async (t) => {
  const app = await startApp(t, { REFRESH_GRACE: '1' })
  const acme = await createTenant(app, 'acme')

  t.test('the predecessor ends the family, and that is recorded', async (t) => {
    const first = await acme.signIn()
    const second = await rotate(app, first.refresh_token)
    t.equal((await rotate(app, first.refresh_token)).refresh_token, second.refresh_token, 'within it')
    await sleep(1100)
    const reply = await send(app, 'localhost', {
      ...post('/auth/refresh', { refresh_token: first.refresh_token }, { 'user-agent': 'a thief/1.0' }),
      remoteAddress: '192.0.2.66'
    })
    refused(t, reply, 'refresh_token_reused')
    refused(t, await refresh(app, second.refresh_token), 'session_revoked')
    refused(t, await acme.with(second.access_token, me), 'session_revoked')
    const rows = await allRows(app.database, 'select * from audit_events where session_id = $1 order by created_at', [
      sidOf(first)
    ])
    t.match(rows.at(-1), {
      tenant_id: acme.id,
      action: 'session.refresh_reused',
      actor_id: acme.owner.id,
      ip: '192.0.2.66',
      user_agent: 'a thief/1.0',
      request_id: reply.headers['x-request-id']
    })
    t.equal(rows.filter(({ action }) => action === 'session.refresh_reused').length, 1)
  })
  t.test('the grace counts from the rotation and not from its last repetition', async (t) => {
    const first = await acme.signIn()
    await rotate(app, first.refresh_token)
    await sleep(600)
    await rotate(app, first.refresh_token)
    await sleep(600)
    refused(t, await refresh(app, first.refresh_token), 'refresh_token_reused')
  })
  t.test('the current token is good all the same', async (t) => {
    const first = await acme.signIn()
    const second = await rotate(app, first.refresh_token)
    await sleep(1100)
    t.equal((await refresh(app, second.refresh_token)).statusCode, 200)
  })
})

t.test('a session that is not used ends', async (t) => {
  const app = await startApp(t, { REFRESH_TOKEN_TTL: '1' })
  const acme = await createTenant(app, 'acme')
  let tokens = await acme.signIn()
  for (let use = 0; use < 3; use++) {
    await sleep(500)
    tokens = await rotate(app, tokens.refresh_token)
  }
  t.pass('each use gives it new life')
  const idle = await acme.signIn()
  const { data } = (await acme.with(tokens.access_token, sessions)).json()
  t.ok(
    data.some(({ id }: { id: string }) => id === sidOf(idle)),
    'it is in the list'
  )
  await sleep(1100)
  refused(t, await refresh(app, idle.refresh_token), 'invalid_refresh_token')
  refused(t, await refresh(app, tokens.refresh_token), 'invalid_refresh_token')
  const fresh = await acme.signIn()
  const left = (await acme.with(fresh.access_token, sessions)).json().data
  t.strictSame(
    left.map(({ id }: { id: string }) => id),
    [sidOf(fresh)],
    'and in no list'
  )
  refused(
    t,
    await acme.with(idle.access_token, post('/auth/switch', { tenant: 'acme' })),
    'session_revoked',
    'nor a way to a new one'
  )
})

t.test('a session ends at its greatest age, however much it is used', async (t) => {
  const app = await startApp(t, { SESSION_MAX_AGE: '2' })
  const acme = await createTenant(app, 'acme')
  let tokens = await acme.signIn()
  const { expires_at } = await sessionRow(app, sidOf(tokens))
  const end = expires_at.getTime()
  let [askedAt, reply] = [Date.now(), await refresh(app, tokens.refresh_token)]
  while (reply.statusCode === 200 && askedAt < end + 100) {
    tokens = reply.json()
    t.strictSame((await sessionRow(app, sidOf(tokens))).expires_at, expires_at, 'no rotation moves it')
    await sleep(300)
    askedAt = Date.now()
    reply = await refresh(app, tokens.refresh_token)
  }
  refused(t, reply, 'invalid_refresh_token')
  t.ok(Date.now() > end - 100, 'at that time and not before')
})

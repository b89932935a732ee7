import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { createDevice, makeProof } from './dpop.ts'
import {
  createTenant,
  eventually,
  password,
  post,
  type Server,
  startApp,
  startServer,
  type Tokens,
  testEnvironment
} from './harness.ts'
import { needsRedis, startRedis } from './redis.ts'
import { me } from './requests.ts'

// rehearsal: proofs of two processes with one Redis

/*
 * A proof is good once, in whichever process (DPoP, RFC 9449, 11.1).
 */

/** Two processes of one installation, whose requests name the same host, and somebody who is signed in with a key. */
async function startTwo(t: Test, env: Record<string, string>) {
  const app = await startApp(t, env)
  const acme = await createTenant(app, 'acme')
  const phone = createDevice(app)
  const login = () => phone.send(acme.host, post('/auth/login', { email: acme.owner.email, password }))
  const tokens: Tokens = (await login()).json()
  const settings = testEnvironment(app.database, { ...env, EXTRA_HOSTS: 'one.example' })
  const start = () => startServer(t, settings)
  const servers = await Promise.all([start(), start()])
  let nonce: string | undefined
  const proof = () => {
    const { access_token: token } = tokens
    return makeProof(phone.key, { method: 'GET', url: `http://one.example${me}`, token, nonce })
  }
  const use = (server: Server, dpop: string) => ask(server, { authorization: `DPoP ${tokens.access_token}`, dpop })
  /** Gets a nonce from a process if it does not take the present one. */
  async function renew(server: Server): Promise<void> {
    nonce = (await use(server, proof())).headers['dpop-nonce'] ?? nonce
  }
  return { servers, start, proof, use, renew }
}

/** fetch does not let a client choose the Host header. */
async function ask({ port }: Server, headers: Record<string, string>) {
  const { request } = await import('node:http')
  const sent = request({ port, path: me, headers: { host: 'one.example', ...headers } })
  const reply = await new Promise<import('node:http').IncomingMessage>((resolve, reject) => {
    sent.on('response', resolve).on('error', reject).end()
  })
  const body = JSON.parse(Buffer.concat(await reply.toArray()).toString())
  return { status: reply.statusCode, body, headers: reply.headers as Record<string, string> }
}

const used = { status: 401, body: { code: 'invalid_dpop_proof', detail: 'the proof was used before' } }

t.test('two processes with one Redis', { ...needsRedis }, async (t) => {
  const redis = await startRedis(t)
  const { servers, start, proof, use, renew } = await startTwo(t, { REDIS_URL: redis.url })
  let [one, two] = servers as [Server, Server]
  // the youngest process takes no nonce from before its start, and the older ones take its own
  await renew(two)
  await renew(one)

  await t.test('of fifty uses of each of ten proofs one succeeds', async (t) => {
    for (let round = 0; round < 10; round++) {
      const dpop = proof()
      const replies = await Promise.all(Array.from({ length: 50 }, (_, n) => use(n % 2 ? one : two, dpop)))
      t.equal(replies.filter(({ status }) => status === 200).length, 1)
      t.match(
        replies.find(({ status }) => status !== 200),
        used
      )
    }
  })
  await t.test('a process that was started again takes no proof from before', async (t) => {
    const dpop = proof()
    t.equal((await use(one, dpop)).status, 200)
    one.child.kill('SIGKILL')
    await one.exited
    one = await start()
    t.match(await use(one, dpop), { status: 401 })
    await renew(one)
    t.equal((await use(one, proof())).status, 200)
  })
  await t.test('while Redis is away each remembers its own, and nobody is refused', async (t) => {
    redis.signal('SIGSTOP')
    for (let round = 0; round < 5; round++) {
      const dpop = proof()
      t.equal((await use(two, dpop)).status, 200)
      t.match(await use(two, dpop), used)
    }
    redis.signal('SIGCONT')
  })
  await t.test('a Redis that was started again, empty, makes no proof good at another process', async (t) => {
    const before = proof()
    t.equal((await use(one, before)).status, 200)
    await redis.restart()
    // two connections of each of the processes, of which the test is one
    const connected = async () => String(await redis.admin.client('LIST')).split('user=aggios').length - 1 === 6
    await eventually(connected)
    // each process refuses the nonces up to the second in which it was connected
    await sleep(1000)
    t.match(await use(two, before), { status: 401, body: { code: 'use_dpop_nonce' } })
    // one nonce more, and not one a process
    await renew(two)
    t.equal((await use(two, proof())).status, 200)
    t.equal((await use(one, proof())).status, 200)
  })
})

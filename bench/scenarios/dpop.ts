import { createHash, generateKeyPairSync, randomUUID, sign } from 'node:crypto'
import type { Bench, Scenario } from '../bench.ts'
import { postJson } from '../callers.ts'
import { ask, pick, readMe } from '../contenders.ts'
import type { Dataset, SeededUser } from '../database.ts'
import type { HttpRequest } from '../load.ts'
import { measureBoth } from '../pairs.ts'
import { usageOf } from '../processes.ts'
import { type Server, startProduct, startRedis } from '../servers.ts'
import { spreadOf } from '../statistics.ts'

const signedIn = 32

/** Signs in, and resolves to what makes signed reads, whose nonce lives longer than a measurement. */
async function signInWithKey(server: Server, { host, email }: SeededUser, password: string) {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const { kty, crv, x, y } = publicKey.export({ format: 'jwk' })
  const header = encode({ typ: 'dpop+jwt', alg: 'ES256', jwk: { kty, crv, x, y } })
  let nonce = ''
  const prove = ({ method, path, headers, body }: HttpRequest, ath?: string): HttpRequest => {
    const iat = Math.floor(Date.now() / 1000)
    const claims = { jti: randomUUID(), htm: method, htu: `https://${host}${path}`, iat, nonce, ath }
    const content = `${header}.${encode(claims)}`
    const signature = sign('sha256', Buffer.from(content), { key: privateKey, dsaEncoding: 'ieee-p1363' })
    const dpop = `${content}.${signature.toString('base64url')}`
    return { method, path, headers: { ...headers, dpop }, ...(body !== undefined && { body }) }
  }
  const login = () => ask(server, prove(postJson('/api/v1/auth/login', host, { email, password })))
  nonce = (await login()).nonce ?? ''
  const { status, body } = await login()
  if (status !== 200) throw new Error(`sign-in answered ${status}: ${JSON.stringify(body)}`)
  const { access_token, token_type } = body as { access_token: string; token_type: string }
  if (token_type !== 'DPoP') throw new Error(`sign-in gave a token for ${token_type}`)
  const ath = createHash('sha256').update(access_token).digest('base64url')
  const bare: HttpRequest = { method: 'GET', path: '/api/v1/users/me', headers: { host } }
  const authorization = `DPoP ${access_token}`
  return {
    async renew() {
      nonce = (await ask(server, prove({ ...bare, headers: { host, authorization } }, ath))).nonce ?? nonce
    },
    read: () => prove({ ...bare, headers: { host, authorization } }, ath)
  }
}

const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString('base64url')

/** Compares reads with a proof and without, on the same connections. The proofs are signed before the time begins. */
async function compare(bench: Bench, dataset: Dataset, name: string, env: NodeJS.ProcessEnv): Promise<void> {
  const { pairs, seconds, tries, connections } = bench.conditions()
  const server = await startProduct(bench.database, dataset, env)
  const people = pick(dataset.users, signedIn)
  const bearers = people.map(readMe)
  const devices = await Promise.all(people.map((user) => signInWithKey(server, user, dataset.password)))

  /** The CPU time of the server for one request, in microseconds, and how many requests there were. */
  async function measure(requests: HttpRequest[]) {
    const before = usageOf(server.pid).cpu_us
    const { replies, refused } = await bench.load.drive({ port: server.port, requests, connections, seconds })
    if (refused > 0) throw new Error(`refused ${refused} of ${replies} requests`)
    return { cpuUs: (usageOf(server.pid).cpu_us - before) / replies, replies }
  }
  // each proof is good once: twice as many as there are requests without one, which cost less
  let most = 0
  const readPlain = async () => {
    const measured = await measure(bearers)
    most = Math.max(most, measured.replies * 2)
    return measured
  }
  const readProven = async () => {
    await Promise.all(devices.map(({ renew }) => renew()))
    return measure(Array.from({ length: most }, (_, n) => devices[n % devices.length]?.read() as HttpRequest))
  }
  await readPlain()
  await readPlain()
  await readProven()
  const samples: [number, number][] = []
  for (let turn = 0; turn < pairs; turn++) {
    const [proven, plain] = await measureBoth(turn, tries, readProven, readPlain)
    samples.push([proven.cpuUs, plain.cpuUs])
  }
  await server.stop()
  const ratio = spreadOf(samples.map(([withProof, without]) => withProof / without))
  const more = spreadOf(samples.map(([withProof, without]) => withProof - without))
  const range = ({ low, high }: typeof ratio, digits: number) => `${low.toFixed(digits)} to ${high.toFixed(digits)}`
  bench.figure({ name: `${name}/cpu`, value: ratio.median, unit: 'ratio', detail: range(ratio, 2) })
  bench.figure({ name: `${name}/proof`, value: more.median, unit: 'µs', detail: `more a request, ${range(more, 0)}` })
}

export const dpop: Scenario = {
  name: 'dpop',
  about: 'GET /users/me with a proof of a key (DPoP), against the same with a bearer token: CPU of the server',
  inQuick: false,
  async run(bench) {
    const dataset = await bench.thousand()
    await compare(bench, dataset, 'dpop', {})
    const redis = await startRedis()
    if (!redis) return bench.skip('dpop with Redis', 'there is no redis-server')
    await compare(bench, dataset, 'dpop with Redis', { REDIS_URL: redis.url })
    await redis.stop()
  }
}

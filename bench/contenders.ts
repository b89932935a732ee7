import { deepStrictEqual, strictEqual } from 'node:assert/strict'
import { request as send } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Dataset, query, type SeededUser } from './database.ts'
import { counterMark, type HttpRequest } from './load.ts'
import type { Contender } from './pairs.ts'
import { membersText, type UserKey, userText } from './peers/query.ts'
import type { Server } from './servers.ts'

/** The number of requests in a load: one person of each of the 1,000 agencies. */
export const spread = 1_000

/** Picks people, spread evenly over a dataset. */
export function pick(users: readonly SeededUser[], count: number): SeededUser[] {
  const step = Math.max(1, Math.floor(users.length / count))
  return users.filter((_, index) => index % step === 0).slice(0, count)
}

const signedIn = ({ host, access_token }: SeededUser) => ({ host, authorization: `Bearer ${access_token}` })

function get(path: string, headers: Record<string, string>): HttpRequest {
  return { method: 'GET', path, headers }
}

/** Sends one request. Unlike fetch, it can set the Host header. */
export async function ask(
  server: Server,
  request: HttpRequest
): Promise<{ status: number; etag: string | undefined; nonce: string | undefined; body: unknown }> {
  return new Promise((resolve, reject) => {
    const { method, path, headers, body } = request
    const outgoing = send({ host: '127.0.0.1', port: server.port, method, path, headers }, (reply) => {
      let text = ''
      reply.setEncoding('utf8').on('data', (chunk: string) => {
        text += chunk
      })
      reply.on('end', () => {
        const { statusCode = 0, headers } = reply
        const nonce = headers['dpop-nonce'] as string | undefined
        const body: unknown = text === '' ? undefined : JSON.parse(text)
        resolve({ status: statusCode, etag: headers.etag, nonce, body })
      })
    })
    outgoing.on('error', reject)
    outgoing.end(body)
  })
}

/** The expected rows of a reply, and how to read the rows from its body. */
type Shown = {
  rowsOf(dataset: Dataset, user: UserKey): Promise<unknown[]>
  read(body: unknown): unknown[]
}
const oneUser: Shown = {
  rowsOf: ({ urls }, { tenant_id, user_id }) => query(urls.postgres, userText, [tenant_id, user_id]),
  read: (body) => [body]
}
const someMembers: Shown = {
  rowsOf: ({ urls }, { tenant_id }) => query(urls.postgres, membersText, [tenant_id]),
  read: (body) => (body as { data: unknown[] }).data
}

/** Compares the replies for a few people with rows that are read directly from the database. */
async function checkReplies(
  server: Server,
  dataset: Dataset,
  requestFor: (user: SeededUser) => HttpRequest,
  { rowsOf, read }: Shown
): Promise<void> {
  for (const user of pick(dataset.users, 5)) {
    const { status, body } = await ask(server, requestFor(user))
    strictEqual(status, 200, `${server.name} answered ${status}`)
    // through JSON, so that both sides have the same types
    deepStrictEqual(read(body), JSON.parse(JSON.stringify(await rowsOf(dataset, user))))
  }
}

/** `GET /api/v1/users/me` for a person, on the host of the agency. */
export const readMe = (user: SeededUser) => get('/api/v1/users/me', signedIn(user))

/** `GET /api/v1/users/me` of the product, for people of all agencies in turn. */
export function productReads(server: Server, dataset: Dataset, label = 'aggios', people = spread): Contender {
  return {
    label,
    server,
    requests: pick(dataset.users, people).map(readMe),
    check: () => checkReplies(server, dataset, readMe, oneUser)
  }
}

/** The same reads, which must be answered by the database. */
export function productFreshReads(server: Server, dataset: Dataset): Contender {
  const readFresh = (user: SeededUser): HttpRequest => {
    const { path, headers } = readMe(user)
    return get(path, { ...headers, 'cache-control': 'no-cache' })
  }
  return {
    label: 'aggios, no-cache',
    server,
    requests: pick(dataset.users, spread).map(readFresh),
    check: () => checkReplies(server, dataset, readFresh, oneUser)
  }
}

/** The time after which a read shows every change, of any process: a second, and some more. */
const staleMs = 1_500

/** `PATCH /api/v1/users/me`, which gives a person another name in each request of a load. */
function rename(user: SeededUser): HttpRequest {
  const { path, headers } = readMe(user)
  const body = JSON.stringify({ name: `Ada ${counterMark}` })
  return { method: 'PATCH', path, headers: { ...headers, 'content-type': 'application/json' }, body }
}

/** Changes of names, of people of all agencies in turn. */
export function productWrites(server: Server, dataset: Dataset): Contender {
  return {
    label: 'aggios, changes',
    server,
    requests: pick(dataset.users, spread).map(rename),
    async check() {
      await sleep(staleMs)
      await checkReplies(server, dataset, readMe, oneUser)
    }
  }
}

/** Nine reads of people of all agencies, and then a change of somebody's name, in turn. Each name is another one. */
export function productMix(server: Server, dataset: Dataset, label: string): Contender {
  const people = pick(dataset.users, spread)
  // everybody is renamed once in a cycle, and read nine times
  const requests = Array.from({ length: 10 * people.length }, (_, turn) => {
    const user = people[(turn * 7) % people.length] as SeededUser
    return turn % 10 === 9 ? rename(people[Math.floor(turn / 10)] as SeededUser) : readMe(user)
  })
  return {
    label,
    server,
    requests,
    async check() {
      await sleep(staleMs)
      await checkReplies(server, dataset, readMe, oneUser)
    }
  }
}

/** `GET /api/v1/users/me` of the product, answered with 304. */
export async function productUnchanged(server: Server, dataset: Dataset): Promise<Contender> {
  const requests: HttpRequest[] = []
  for (const user of pick(dataset.users, spread)) {
    const { etag = '' } = await ask(server, readMe(user))
    requests.push(get('/api/v1/users/me', { ...signedIn(user), 'if-none-match': etag }))
  }
  return {
    label: 'aggios 304',
    server,
    requests,
    async check() {
      for (const request of requests.slice(0, 5)) {
        const { status, body } = await ask(server, request)
        deepStrictEqual({ status, body }, { status: 304, body: undefined })
      }
    }
  }
}

/** `GET /api/v1/users/me` of the product without a token or with a forged one, as in a flood. */
export function productRefusals(server: Server, dataset: Dataset, token: 'no token' | 'a forged token'): Contender {
  const requests = pick(dataset.users, spread).map((user, index) => {
    const { authorization, ...bare } = signedIn(user)
    const [head, claims] = authorization.split('.')
    const forged = `${head}.${claims}.${String(index).padStart(43, 'A')}`
    return get('/api/v1/users/me', token === 'no token' ? bare : { ...bare, authorization: forged })
  })
  return {
    label: `aggios 401, ${token}`,
    server,
    requests,
    refuses: true,
    async check() {
      for (const request of requests.slice(0, 5)) strictEqual((await ask(server, request)).status, 401)
    }
  }
}

/** `GET /api/v1/users/me` of a product that allows one request each. */
export function productLimited(server: Server, dataset: Dataset): Contender {
  const requests = pick(dataset.users, spread).map(readMe)
  return {
    label: 'aggios 429',
    server,
    requests,
    refuses: true,
    async check() {
      for (const request of requests.slice(0, 5)) {
        await ask(server, request)
        strictEqual((await ask(server, request)).status, 429)
      }
    }
  }
}

/** `GET /api/v1/members` of the product: the first 25 people of an agency. */
export function productLists(server: Server, dataset: Dataset): Contender {
  const requestFor = (user: SeededUser) => get('/api/v1/members', signedIn(user))
  return {
    label: 'aggios',
    server,
    requests: pick(dataset.users, spread).map(requestFor),
    check: () => checkReplies(server, dataset, requestFor, someMembers)
  }
}

/** The same list from a peer. */
export function peerLists(server: Server, dataset: Dataset): Contender {
  const requestFor = ({ host, tenant_id }: SeededUser) => get(`/members/${tenant_id}`, { host })
  return {
    label: server.name,
    server,
    requests: pick(dataset.users, spread).map(requestFor),
    check: () => checkReplies(server, dataset, requestFor, someMembers)
  }
}

/** The constant of the peer that asks nobody. */
export function floorReads(server: Server, dataset: Dataset): Contender {
  const requests = pick(dataset.users, spread).map(({ host, tenant_id, user_id }) =>
    get(`/users/${tenant_id}/${user_id}`, { host })
  )
  return {
    label: 'floor',
    server,
    requests,
    async check() {
      for (const request of requests.slice(0, 5)) strictEqual((await ask(server, request)).status, 200)
    }
  }
}

/** The same row from a peer, which knows neither tokens nor agencies. */
export function peerReads(server: Server, dataset: Dataset): Contender {
  const keyed = ({ host, tenant_id, user_id }: SeededUser) => get(`/users/${tenant_id}/${user_id}`, { host })
  const requestFor = server.name === 'plugins' ? (user: SeededUser) => get('/users/me', signedIn(user)) : keyed
  return {
    label: server.name,
    server,
    requests: pick(dataset.users, spread).map(requestFor),
    check: () => checkReplies(server, dataset, requestFor, oneUser)
  }
}

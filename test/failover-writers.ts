import { setTimeout as sleep } from 'node:timers/promises'
import { sha256 } from './bytes.ts'
import { fileForm } from './forms.ts'
import { password } from './harness.ts'
import { prepareAgency } from './oracle.ts'
import { sidOf } from './tokens.ts'

/*
 * Writers that note what they were told. Each has an agency of its own, sends one request at a time to any process, and repeats
 * a request without an answer until it has one, as a client does that sends an Idempotency-Key or a condition.
 * test/failover-judge.ts compares what they noted with the database.
 */

/** `status` 0: the connection broke. `ms`: how long the answer took. */
export type Answer = { status: number; body: Record<string, unknown>; headers: Headers; ms: number }
export type Request = { method: string; path: string; token?: string; body?: object; headers?: Record<string, string> }

/** `asked`: a request was sent, and its outcome is not known. */
export type Outcome = 'asked' | 'acknowledged'
export type Upload = { name: string; digest: string; outcome: Outcome; id?: string }
/** `endedAt`: when the sign-out was acknowledged. */
export type SignOut = { session: string; access: string; refresh: string; outcome: Outcome; endedAt: number }

export type Writer = {
  slug: string
  tenant: string
  person: string
  access: string
  refresh: string
  session: string
  /** How often the session was rotated, as its owner was told. */
  rotations: number
  /** The names that were acknowledged, in their order. The first one is that of the registration. */
  names: string[]
  /** The tag of the newest name. */
  etag: string
  invitations: Map<string, { outcome: Outcome; id?: string }>
  uploads: Upload[]
  signOuts: SignOut[]
}

export type Writers = {
  all: Writer[]
  acknowledged(): number
  /** How many answers were 503, and how many connections broke. */
  refused(): number
  broken(): number
  slowestAnswerMs(): number
  /** Answers that no client should get. */
  faults: string[]
  /** Resolves when so many requests were acknowledged in all. */
  reach(count: number): Promise<void>
  /** Lets each writer end what it has begun. */
  settle(): Promise<void>
}

/** Sends a request to one process. An answer is waited for as long as a client would. */
export async function send(url: string, { method, path, token, body, headers }: Request): Promise<Answer> {
  const startedAt = performance.now()
  const raw = body instanceof Buffer
  try {
    const reply = await fetch(`${url}/api/v1${path}`, {
      method,
      headers: {
        ...(body && !raw && { 'content-type': 'application/json' }),
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
        ...headers
      },
      ...(body && { body: raw ? body : JSON.stringify(body) }),
      signal: AbortSignal.timeout(60_000)
    })
    const text = await reply.text()
    const ms = performance.now() - startedAt
    return { status: reply.status, body: text === '' ? {} : JSON.parse(text), headers: reply.headers, ms }
  } catch {
    return { status: 0, body: {}, headers: new Headers(), ms: performance.now() - startedAt }
  }
}

async function register(url: string, slug: string): Promise<Writer> {
  const { id, sessions } = await prepareAgency(url, slug, 1)
  const [session] = sessions
  if (!session) throw new Error('no session was opened')
  const { access, refresh } = session
  const me = await send(url, { method: 'GET', path: '/users/me', token: access })
  return {
    ...{ slug, tenant: id, person: String(me.body.id), access, refresh },
    ...{ session: session.id, rotations: 0, names: [String(me.body.name)], etag: String(me.headers.get('etag')) },
    ...{ invitations: new Map(), uploads: [], signOuts: [] }
  }
}

type Plan = { urls: string[]; count: number; random: () => number }

export async function startWriters({ urls, count, random }: Plan): Promise<Writers> {
  const faults: string[] = []
  let running = true
  let acknowledged = 0
  let refused = 0
  let broken = 0
  let slowest = 0
  let serial = 0
  let wake = () => {}

  const acknowledge = () => {
    acknowledged++
    wake()
  }

  /** Sends a request to any process. Undefined: its outcome is unknown. */
  async function attempt(request: Request): Promise<Answer | undefined> {
    const url = urls[Math.floor(random() * urls.length)] as string
    const answer = await send(url, request)
    slowest = Math.max(slowest, answer.ms)
    if (answer.status === 0) broken++
    else if (answer.status >= 500) {
      refused++
      const isProblem = answer.headers.get('content-type')?.startsWith('application/problem+json')
      if (answer.status !== 503 || !isProblem || !answer.headers.has('retry-after')) reject(request, answer)
    }
    return answer.status === 0 || answer.status >= 500 ? undefined : answer
  }

  function reject({ method, path }: Request, { status, body }: Answer): void {
    faults.push(`${method} ${path}: ${status} ${JSON.stringify(body)}`)
    wake()
  }

  /** Repeats a request until its outcome is known. `repeated` says whether an earlier attempt may have had an effect. */
  async function untilAnswered(request: Request): Promise<{ answer: Answer; repeated: boolean }> {
    for (let repeated = false; ; repeated = true) {
      const answer = await attempt(request)
      const inUse = answer?.status === 409 && answer.body.code === 'idempotency_key_in_use'
      if (answer && !inUse) return { answer, repeated }
      await sleep(50 + random() * 100)
    }
  }

  /** Changes the name under a condition, so that a repetition cannot make a second change. */
  async function rename(writer: Writer): Promise<void> {
    const name = `${writer.slug} ${++serial}`
    const headers = { 'if-match': writer.etag }
    const request = { method: 'PATCH', path: '/users/me', token: writer.access, body: { name }, headers }
    let { answer, repeated } = await untilAnswered(request)
    if (answer.status === 412 && repeated) {
      const read = { method: 'GET', path: '/users/me', token: writer.access, headers: { 'cache-control': 'no-cache' } }
      answer = (await untilAnswered(read)).answer
    }
    if (answer.status !== 200 || answer.body.name !== name) return reject(request, answer)
    writer.names.push(name)
    writer.etag = String(answer.headers.get('etag'))
    acknowledge()
  }

  async function invite(writer: Writer): Promise<void> {
    const email = `${writer.slug}-${++serial}@example.com`
    const request: Request = {
      ...{ method: 'POST', path: '/invitations', token: writer.access },
      ...{ body: { email, role: 'viewer' }, headers: { 'idempotency-key': email } }
    }
    writer.invitations.set(email, { outcome: 'asked' })
    const { answer } = await untilAnswered(request)
    if (answer.status !== 201) return reject(request, answer)
    writer.invitations.set(email, { outcome: 'acknowledged', id: String(answer.body.id) })
    acknowledge()
  }

  /** Uploads a file, and does not repeat it: a repetition would be another file. */
  async function upload(writer: Writer): Promise<void> {
    const name = `${writer.slug}-${++serial}.txt`
    const content = Buffer.from(`${name}\n`.repeat(20))
    const { method, payload, headers } = fileForm(content, name)
    const request = { method, path: '/files', token: writer.access, body: payload, headers }
    const noted: Upload = { name, digest: sha256(content), outcome: 'asked' }
    writer.uploads.push(noted)
    const answer = await attempt(request)
    if (!answer) return
    if (answer.status !== 201) return reject(request, answer)
    Object.assign(noted, { outcome: 'acknowledged', id: String(answer.body.id) })
    acknowledge()
  }

  /** Sends the same token again after a lost reply, and must not be signed out by that. */
  async function refresh(writer: Writer): Promise<void> {
    const request = { method: 'POST', path: '/auth/refresh', body: { refresh_token: writer.refresh } }
    const { answer } = await untilAnswered(request)
    if (answer.status !== 200) return reject(request, answer)
    writer.access = String(answer.body.access_token)
    writer.refresh = String(answer.body.refresh_token)
    writer.rotations++
    acknowledge()
  }

  /** Opens a session, and ends it. */
  async function signOut(writer: Writer): Promise<void> {
    const credentials = { email: `owner@${writer.slug}.example`, password }
    const signIn: Request = { method: 'POST', path: '/auth/login', body: credentials }
    const opened = await attempt(signIn)
    if (!opened) return
    if (opened.status !== 200) return reject(signIn, opened)
    acknowledge()
    const access = String(opened.body.access_token)
    const refresh = String(opened.body.refresh_token)
    const noted: SignOut = { session: sidOf({ access_token: access }), access, refresh, outcome: 'asked', endedAt: 0 }
    writer.signOuts.push(noted)
    const request = { method: 'POST', path: '/auth/logout', token: access }
    const { answer } = await untilAnswered(request)
    if (answer.status !== 204) return reject(request, answer)
    Object.assign(noted, { outcome: 'acknowledged', endedAt: performance.now() })
    acknowledge()
  }

  async function work(writer: Writer): Promise<void> {
    while (running) {
      const choice = random()
      if (choice < 0.3) await rename(writer)
      else if (choice < 0.55) await invite(writer)
      else if (choice < 0.65) await upload(writer)
      else if (choice < 0.97) await refresh(writer)
      else await signOut(writer)
    }
  }

  const all: Writer[] = []
  for (let i = 0; i < count; i++) all.push(await register(urls[i % urls.length] as string, `writer-${i}`))
  const loops = Promise.all(all.map(work))
  loops.catch(() => {})
  return {
    all,
    faults,
    acknowledged: () => acknowledged,
    refused: () => refused,
    broken: () => broken,
    slowestAnswerMs: () => Math.round(slowest),
    async reach(wanted) {
      const failed = loops.then(() => Promise.reject(new Error('the writers have stopped')))
      failed.catch(() => {})
      while (acknowledged < wanted) {
        if (faults.length > 0) throw new Error(faults.join('\n'))
        const more = new Promise<void>((done) => {
          wake = done
        })
        await Promise.race([more, failed])
      }
    },
    async settle() {
      running = false
      await loops
    }
  }
}

import { closeSync, fdatasyncSync, openSync, readFileSync, writeSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { DatabaseUrls } from './databases.ts'
import { allRows, eventually, type Owner, password } from './harness.ts'
import { stopwatch } from './machine.ts'
import { sidOf } from './tokens.ts'

/*
 * Clients with a ledger, and a judge. A client writes each request into the ledger before it sends it, and the outcome
 * after it; each line is synced to disk. The judge reads everything back, through the API and by SQL, and names each
 * promise that was not kept:
 *
 *   An acknowledged change is there, and a refused one is not. One without an answer is there once or not at all. Every change has
 *   one row in the audit log. The changes of one object form one order.
 */

type Database = Pick<DatabaseUrls, 'postgres'>

type Kind = 'append' | 'invite' | 'found' | 'refresh'

/** A request. `key` identifies what it makes. `before` is the state that a conditional write was based on. */
type Asked = { n: number; agency: string; kind: Kind; key: string; before?: string }
/** `ok`: acknowledged. `fail`: refused. `info`: unknown, because there was no answer, or one of 5xx. */
type Told = { n: number; outcome: 'ok' | 'fail' | 'info'; status: number }

export type Operation = Asked & Omit<Told, 'n'>

export type Ledger = {
  ask(asked: Omit<Asked, 'n'>): number
  tell(told: Told): void
  read(): Operation[]
}

/** Opens a ledger in a file. A request without an outcome counts as `info`. */
export function openLedger(t: Owner, file: string): Ledger {
  const fd = openSync(file, 'a')
  t.teardown(() => closeSync(fd))
  let count = 0
  const write = (line: Asked | Told) => {
    writeSync(fd, `${JSON.stringify(line)}\n`)
    fdatasyncSync(fd)
  }
  return {
    ask(asked) {
      const n = ++count
      write({ n, ...asked })
      return n
    },
    tell: write,
    read() {
      const operations = new Map<number, Operation>()
      for (const line of readFileSync(file, 'utf8').split('\n').filter(Boolean)) {
        const entry = JSON.parse(line) as Asked | Told
        if ('kind' in entry) operations.set(entry.n, { ...entry, outcome: 'info', status: 0 })
        else Object.assign(operations.get(entry.n) as Operation, entry)
      }
      return [...operations.values()]
    }
  }
}

export type Answer = { status: number; body: Record<string, unknown>; headers: Headers }

/** Sends a request to one process, which must answer with the newest. Rejects if the answer is missing or cut off. */
export async function ask(
  url: string,
  method: string,
  path: string,
  { token, body, ifMatch }: { token?: string; body?: object; ifMatch?: string } = {}
): Promise<Answer> {
  const reply = await fetch(`${url}/api/v1${path}`, {
    method,
    // a machine that is busy takes its time; without an end a lost reply would hold the file until its own
    signal: AbortSignal.timeout(60_000),
    headers: {
      'cache-control': 'no-cache',
      ...(body && { 'content-type': 'application/json' }),
      ...(token !== undefined && { authorization: `Bearer ${token}` }),
      ...(ifMatch !== undefined && { 'if-match': ifMatch })
    },
    ...(body && { body: JSON.stringify(body) })
  })
  const text = await reply.text()
  return { status: reply.status, body: text === '' ? {} : JSON.parse(text), headers: reply.headers }
}

/** Registers an agency. Its name is the register: the object that the clients change one after the other. */
export async function registerAgency(url: string, slug: string): Promise<Answer> {
  const email = `owner@${slug}.example`
  return ask(url, 'POST', '/auth/register', {
    body: { tenant: { name: `${slug}:0`, slug }, name: slug, email, password }
  })
}

type Session = { access: string; refresh: string; rotations: number; id: string }
export type Agency = { slug: string; id: string; sessions: Session[] }

/** Registers an agency, and opens a session of its owner for each client. */
export async function prepareAgency(url: string, slug: string, clients: number): Promise<Agency> {
  const { status, body } = await registerAgency(url, slug)
  if (status !== 201) throw new Error(`register: ${status} ${JSON.stringify(body)}`)
  const sessions: Session[] = []
  for (let i = 0; i < clients; i++) {
    const reply = await ask(url, 'POST', '/auth/login', { body: { email: `owner@${slug}.example`, password } })
    const { access_token, refresh_token } = reply.body as { access_token: string; refresh_token: string }
    sessions.push({ access: access_token, refresh: refresh_token, rotations: 0, id: sidOf({ access_token }) })
  }
  return { slug, id: (body.tenant as { id: string }).id, sessions }
}

export type Workload = {
  /** The number of acknowledged requests. `lastSuccess` is the time of the last answer below 400. */
  acknowledged(): number
  lastSuccess(): number
  /** The number of requests whose outcome is unknown. */
  unknown(): number
  slowestAnswerMs(): number
  /** Stops the clients, and repeats each request with an unknown outcome until it has an answer. */
  settle(): Promise<void>
  /** Forbidden answers: a 500, a 503 without Retry-After, or data of another agency. */
  faults: string[]
}

type Work = { agencies: Agency[]; urls: () => string[]; ledger: Ledger; random: () => number; pauseMs?: number }

/** Starts one client for each session of each agency. A client sends one request at a time, to any process. */
export function startWorkload({ agencies, urls, ledger, random, pauseMs = 5 }: Work): Workload {
  const faults: string[] = []
  const retries: (() => Promise<boolean>)[] = []
  let running = true
  let acknowledged = 0
  let unknown = 0
  let lastSuccess = 0
  let slowestAnswerMs = 0
  let names = 0

  const anyUrl = () => {
    const all = urls()
    return all[Math.floor(random() * all.length)] as string
  }

  /** Resolves to the answer, or to undefined if the outcome is unknown. */
  async function send(
    ...[method, path, options]: Parameters<typeof ask> extends [string, ...infer Rest] ? Rest : never
  ) {
    let answer: Answer
    const elapsed = stopwatch()
    try {
      answer = await ask(anyUrl(), method, path, options)
    } catch {
      return undefined
    } finally {
      slowestAnswerMs = Math.max(slowestAnswerMs, elapsed())
    }
    const { status, body, headers } = answer
    const polite = headers.has('retry-after') && headers.get('content-type')?.startsWith('application/problem+json')
    if (status >= 500 && !(status === 503 && polite))
      faults.push(`${method} ${path}: ${status} ${JSON.stringify(body)}`)
    if (status < 400) lastSuccess = Date.now()
    return status >= 500 ? undefined : answer
  }

  /** Sends a request, and writes it and its outcome into the ledger. Resolves to the answer if there is one. */
  async function record(asked: Omit<Asked, 'n'>, sent: () => Promise<Answer | undefined>): Promise<Answer | undefined> {
    const n = ledger.ask(asked)
    const answer = await sent()
    const outcome = answer === undefined ? 'info' : answer.status < 400 ? 'ok' : 'fail'
    ledger.tell({ n, outcome, status: answer?.status ?? 0 })
    if (outcome === 'ok') acknowledged++
    if (outcome === 'info') unknown++
    return answer
  }

  function expect(answer: Answer, what: string, ...statuses: number[]): void {
    if (!statuses.includes(answer.status)) faults.push(`${what}: ${answer.status} ${JSON.stringify(answer.body)}`)
  }

  async function append({ slug }: Agency, { access }: Session): Promise<void> {
    const read = await send('GET', '/tenant', { token: access })
    if (!read) return
    expect(read, 'reading', 200)
    const before = String(read.body.name)
    if (!before.startsWith(`${slug}:`)) faults.push(`${slug} was shown ${before}`)
    const key = `${slug}:${++names}`
    const ifMatch = read.headers.get('etag') ?? ''
    const answer = await record({ agency: slug, kind: 'append', key, before }, () =>
      send('PATCH', '/tenant', { token: access, body: { name: key }, ifMatch })
    )
    if (answer) expect(answer, key, 200, 412)
    if (answer?.status === 200 && answer.body.name !== key) faults.push(`${key} was answered with ${answer.body.name}`)
  }

  /** Creates something that can exist once only. After an unknown outcome, the repeated request may get 201 or 409. */
  async function make(asked: Omit<Asked, 'n'>, sent: () => Promise<Answer | undefined>): Promise<void> {
    const answer = await record(asked, sent)
    if (answer) expect(answer, asked.key, 201)
    else {
      retries.push(async () => {
        const again = await sent()
        if (again) expect(again, `${asked.key} again`, 201, 409)
        return again !== undefined
      })
    }
  }

  function invite({ slug }: Agency, { access }: Session): Promise<void> {
    const key = `${slug}-${++names}@example.com`
    return make({ agency: slug, kind: 'invite', key }, () =>
      send('POST', '/invitations', { token: access, body: { email: key, role: 'viewer' } })
    )
  }

  function found({ slug }: Agency, { access }: Session): Promise<void> {
    const key = `${slug}-${++names}`
    return make({ agency: slug, kind: 'found', key }, () =>
      send('POST', '/tenants', { token: access, body: { name: key, slug: key } })
    )
  }

  /** Refreshes a session. After a lost reply the client sends the same token again, and must not be signed out. */
  async function refresh({ slug }: Agency, session: Session): Promise<boolean> {
    const key = `${session.id}:${session.rotations + 1}`
    const answer = await record({ agency: slug, kind: 'refresh', key }, () =>
      send('POST', '/auth/refresh', { body: { refresh_token: session.refresh } })
    )
    if (!answer) return false
    expect(answer, key, 200)
    if (answer.status !== 200) return true
    session.access = String(answer.body.access_token)
    session.refresh = String(answer.body.refresh_token)
    session.rotations++
    return true
  }

  async function client(agency: Agency, session: Session): Promise<void> {
    let refreshed = true
    while (running) {
      const unknownBefore = unknown
      const choice = random()
      if (choice < 0.35) await append(agency, session)
      else if (choice < 0.6) await invite(agency, session)
      else if (choice < 0.7) await found(agency, session)
      else refreshed = await refresh(agency, session)
      // a client without an answer waits longer
      await sleep(unknown > unknownBefore ? 20 * pauseMs : pauseMs)
    }
    if (!refreshed) retries.push(() => refresh(agency, session))
  }

  const clients = agencies.flatMap((agency) => agency.sessions.map((session) => client(agency, session)))
  return {
    acknowledged: () => acknowledged,
    unknown: () => unknown,
    lastSuccess: () => lastSuccess,
    slowestAnswerMs: () => slowestAnswerMs,
    faults,
    async settle() {
      running = false
      await Promise.all(clients)
      for (const retry of retries) await eventually(retry, 30_000)
    }
  }
}

/** Reads everything back. Resolves to the broken promises. */
export async function judge(
  database: Database,
  url: string,
  agencies: Agency[],
  operations: Operation[]
): Promise<string[]> {
  const verdicts: string[] = []
  for (const agency of agencies) {
    const own = operations.filter((operation) => operation.agency === agency.slug)
    const of = (kind: Kind) => own.filter((operation) => operation.kind === kind)
    verdicts.push(
      ...judgeRegister(of('append'), await readRegister(database, agency)),
      ...(await judgeName(database, url, agency)),
      ...judgeMade(
        of('invite'),
        await readInvitations(database, agency),
        await listAll(url, agency, '/invitations', 'email')
      ),
      ...judgeMade(
        of('found'),
        await readFounded(database, agency),
        await listAll(url, agency, '/users/me/tenants', 'slug')
      ),
      ...(await judgeSessions(database, url, agency))
    )
  }
  return verdicts
}

type Change = { before: string; after: string }
type Register = { first: string; last: string; version: number; changes: Change[] }

async function readRegister(database: Database, { id, slug }: Agency): Promise<Register> {
  const changes = await allRows(
    database,
    `select detail->'before'->>'name' as before, detail->'after'->>'name' as after
     from audit_events where tenant_id = $1 and action = 'tenant.updated'`,
    [id]
  )
  const [row] = await allRows(database, 'select name, version from tenants where id = $1', [id])
  return { first: `${slug}:0`, last: row?.name, version: row?.version, changes: changes as Change[] }
}

/** The changes of a name must form one chain from the first to the last value. A gap is a lost update. */
function judgeRegister(operations: Operation[], { first, last, version, changes }: Register): string[] {
  const verdicts: string[] = []
  const nextOf = new Map(changes.map(({ before, after }) => [before, after]))
  const order: string[] = []
  for (let at = nextOf.get(first); at !== undefined && order.length <= changes.length; at = nextOf.get(at))
    order.push(at)
  if (order.length !== changes.length)
    verdicts.push(`${first}: ${changes.length} changes form an order of ${order.length}`)
  if ((order.at(-1) ?? first) !== last)
    verdicts.push(`${first}: the last change is ${order.at(-1)}, the name is ${last}`)
  if (version !== changes.length + 1) verdicts.push(`${first}: version ${version} after ${changes.length} changes`)
  const beforeOf = new Map(changes.map(({ before, after }) => [after, before]))
  for (const { key, before, outcome } of operations) {
    const actual = beforeOf.get(key)
    if (outcome === 'ok' && actual === undefined) verdicts.push(`${key} was acknowledged and is lost`)
    if (outcome === 'ok' && actual !== undefined && actual !== before)
      verdicts.push(`${key} replaced ${actual} for ${before}`)
    if (outcome === 'fail' && actual !== undefined) verdicts.push(`${key} was refused and is there`)
    beforeOf.delete(key)
  }
  for (const key of beforeOf.keys()) verdicts.push(`${key} was never asked for`)
  return verdicts
}

async function judgeName(database: Database, url: string, { id, sessions }: Agency): Promise<string[]> {
  const { body } = await ask(url, 'GET', '/tenant', { token: sessions[0]?.access ?? '' })
  const [row] = await allRows(database, 'select name from tenants where id = $1', [id])
  return body.name === row?.name ? [] : [`${row?.name} is shown as ${body.name}`]
}

/** An object that was created, and the number of its rows in the audit log. */
type Made = { key: string; events: number }

async function readInvitations(database: Database, { id }: Agency): Promise<Made[]> {
  const rows = await allRows(
    database,
    `select i.email as key, (select count(*)::int from audit_events a
       where a.tenant_id = i.tenant_id and a.target_id = i.id and a.action = 'invitation.created') as events
     from invitations i where i.tenant_id = $1
     union all
     select 'nobody', 1 from audit_events a where a.tenant_id = $1 and a.action = 'invitation.created'
       and not exists (select from invitations i where i.tenant_id = a.tenant_id and i.id = a.target_id)`,
    [id]
  )
  return rows as Made[]
}

async function readFounded(database: Database, { slug }: Agency): Promise<Made[]> {
  const rows = await allRows(
    database,
    `select t.slug as key, (select count(*)::int from audit_events a
       where a.tenant_id = t.id and a.target_id = t.id and a.action = 'tenant.registered') as events
     from tenants t where t.slug like $1`,
    [`${slug}-%`]
  )
  return rows as Made[]
}

function judgeMade(operations: Operation[], made: Made[], shown: string[]): string[] {
  const verdicts: string[] = []
  const asked = new Map(operations.map((operation) => [operation.key, operation]))
  const count = new Map<string, number>()
  for (const { key, events } of made) {
    count.set(key, (count.get(key) ?? 0) + 1)
    const operation = asked.get(key)
    if (!operation) verdicts.push(`${key} was never asked for`)
    else if (operation.outcome === 'fail') verdicts.push(`${key} was refused and is there`)
    if (events !== 1) verdicts.push(`${key} has ${events} rows in the audit log`)
  }
  for (const [key, times] of count) if (times > 1) verdicts.push(`${key} is there ${times} times`)
  const visible = new Set(shown)
  for (const { key, outcome } of operations) {
    if (outcome !== 'ok') continue
    if (!count.has(key)) verdicts.push(`${key} was acknowledged and is lost`)
    else if (!visible.has(key)) verdicts.push(`${key} is not shown`)
  }
  return verdicts
}

/** The value of one member of every object of a list, from all pages. */
async function listAll(url: string, { sessions }: Agency, path: string, member: string): Promise<string[]> {
  const found: string[] = []
  for (let cursor = ''; ; ) {
    const { status, body } = await ask(url, 'GET', `${path}?limit=100${cursor}`, { token: sessions[0]?.access ?? '' })
    if (status !== 200) throw new Error(`${path}: ${status} ${JSON.stringify(body)}`)
    const { data, next_cursor } = body as { data: Record<string, string>[]; next_cursor: string | null }
    found.push(...data.map((each) => String(each[member])))
    if (next_cursor === null) return found
    cursor = `&cursor=${encodeURIComponent(next_cursor)}`
  }
}

/** A session must have been rotated as often as its client knows, and its newest token must be accepted. */
async function judgeSessions(database: Database, url: string, agency: Agency): Promise<string[]> {
  const verdicts: string[] = []
  for (const session of agency.sessions) {
    const { id, rotations, refresh } = session
    const [row] = await allRows(database, 'select counter, revoked_at from sessions where id = $1', [id])
    if (row?.counter !== rotations) verdicts.push(`session ${id}: rotated ${row?.counter} times, told ${rotations}`)
    if (row?.revoked_at) verdicts.push(`session ${id} was ended`)
    const { status, body } = await ask(url, 'POST', '/auth/refresh', { body: { refresh_token: refresh } })
    if (status !== 200) verdicts.push(`session ${id}: its token is refused with ${status}`)
    else Object.assign(session, { refresh: String(body.refresh_token), rotations: rotations + 1 })
  }
  return verdicts
}

import { setTimeout as sleep } from 'node:timers/promises'
import type { Server } from './harness.ts'

/*
 * A history of the names of people and agencies, as their writers saw them, and what each read may show of it. Used with processes
 * of this one (remembered-model.test.ts), and with others that faults happen to (remembered-faults.test.ts).
 */

export type Answer = { status: number; body: { id?: string; name?: string }; etag: string | undefined }
export type Ask = (
  process: number,
  request: { method: string; url: string; token: string; headers?: Record<string, string>; body?: object }
) => Promise<Answer>

/** Somebody who is signed in to one agency. */
export type Actor = { token: string; person: string; agency: string }
export type Target = 'person' | 'agency'
/** How a read asks: without a word, with the tag of the newest own change, with another tag, or for the newest. */
export type Way = 'plain' | 'own tag' | 'other tag' | 'no-cache'

type Version = { name: string; process: number; acknowledgedAt: number; etag: string | undefined }

const urls = { person: '/api/v1/users/me', agency: '/api/v1/tenant' }
/** What consistency.md promises. */
const boundMs = 1000
const now = () => performance.now()

export class Violation extends Error {}

/** `first`: the names that people and agencies have, by their ids. */
export function createHistory(ask: Ask, first: Record<string, string>) {
  const made = { process: -1, acknowledgedAt: Number.NEGATIVE_INFINITY, etag: undefined }
  const versions = new Map(Object.entries(first).map(([id, name]): [string, Version[]] => [id, [{ ...made, name }]]))
  let names = 0
  const counts = { reads: 0, writes: 0, unanswered: 0 }

  const versionsOf = (id: string) => versions.get(id) as Version[]

  /** Each subject has one writer, who waits for the reply before the next change. */
  async function write(actor: Actor, process: number, target: Target): Promise<void> {
    const name = `${actor[target].slice(-6)} ${++names}`
    const version: Version = { name, process, acknowledgedAt: Number.POSITIVE_INFINITY, etag: undefined }
    versionsOf(actor[target]).push(version)
    const request = { method: 'PATCH', url: urls[target], token: actor.token, body: { name } }
    const { status, etag } = await ask(process, request)
    counts.writes++
    if (status !== 200) counts.unanswered++
    else Object.assign(version, { acknowledgedAt: now(), etag })
  }

  async function read(actor: Actor, process: number, target: Target, way: Way): Promise<void> {
    const known = versionsOf(actor[target])
    const newest = known.findLast(({ etag }) => etag !== undefined)
    const tag = way === 'own tag' ? newest?.etag : way === 'other tag' ? '"0.0-000000000000"' : undefined
    const headers = {
      ...(tag !== undefined && { 'if-none-match': tag }),
      ...(way === 'no-cache' && { 'cache-control': 'no-cache' })
    }
    const askedAt = now()
    const { status, body } = await ask(process, { method: 'GET', url: urls[target], token: actor.token, headers })
    counts.reads++
    if (status !== 200 && status !== 304) {
      counts.unanswered++
      return
    }
    const shown = status === 304 && newest ? newest.name : body.name
    if (status === 200 && body.id !== actor[target]) throw new Violation(`${target} ${body.id} was shown to another`)
    const index = known.findIndex(({ name }) => name === shown)
    if (index === -1) throw new Violation(`${target}: ${shown} is of somebody else`)
    const asksDatabase = way === 'no-cache' || way === 'other tag' || (way === 'own tag' && status === 200)
    for (const version of known.slice(index + 1)) {
      const age = askedAt - version.acknowledgedAt
      const is = `${target} by ${way} of process ${process}: ${shown}, and ${Math.round(age)} ms before it was ${version.name}`
      if (age >= boundMs) throw new Violation(`old: ${is}`)
      if (age > 0 && asksDatabase) throw new Violation(`not the newest: ${is}`)
      if (age > 0 && version.process === process) throw new Violation(`not what this process wrote: ${is}`)
    }
  }

  return { write, read, counts }
}

/** Sends to one of several processes. A request without a reply has the status 0. */
export const askServers = (servers: Server[]): Ask => {
  return async (process, { method, url, token, headers, body }) => {
    try {
      const reply = await fetch(`${servers[process]?.url}${url}`, {
        method,
        headers: { authorization: `Bearer ${token}`, ...(body && { 'content-type': 'application/json' }), ...headers },
        ...(body && { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(30_000)
      })
      const text = await reply.text()
      const etag = reply.headers.get('etag') ?? undefined
      return { status: reply.status, body: text === '' ? {} : JSON.parse(text), etag }
    } catch {
      return { status: 0, body: {}, etag: undefined }
    }
  }
}

/** One person writes by the first process, and reads by both, until the returned function is called, which rejects with the first violation. */
export function startReaders(history: ReturnType<typeof createHistory>, actor: Actor) {
  let stopped = false
  const loop = async (work: () => Promise<void>, ms: number) => {
    while (!stopped) {
      await work()
      await sleep(ms)
    }
  }
  const loops = Promise.all([
    loop(() => history.write(actor, 0, 'person'), 300),
    loop(() => history.read(actor, 0, 'person', 'plain'), 30),
    loop(() => history.read(actor, 1, 'person', 'plain'), 30),
    loop(() => history.read(actor, 1, 'person', 'own tag'), 100)
  ])
  loops.catch(() => {})
  return async () => {
    stopped = true
    await loops
  }
}

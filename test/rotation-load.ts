import { setTimeout as sleep } from 'node:timers/promises'
import { password, type Server, type Tokens } from './harness.ts'
import { call, registration } from './server-calls.ts'

/*
 * Clients who read, refresh, sign in and upload until they are stopped. Every answer that is no success is a fault.
 */

export type Agency = { email: string; tokens: Tokens }

export async function createAgency(server: Server, slug: string): Promise<Agency> {
  const { status, body } = await call(server, 'POST', '/auth/register', registration(slug))
  if (status !== 201) throw new Error(JSON.stringify(body))
  return { email: `owner@${slug}.example`, tokens: body as unknown as Tokens }
}

export type Load = {
  /** What was no success, and the answers so far by kind of request. */
  faults: string[]
  counts: Record<string, number>
  /** Sessions that began before the load, and are refreshed all the time. The newest tokens of each. */
  sessions: Tokens[]
  stop(): Promise<void>
}

const pauses = { read: 50, refresh: 200, sign_in: 800, upload: 300 }

export function startLoad(server: Server, agency: Agency): Load {
  const faults: string[] = []
  const counts: Record<string, number> = {}
  const sessions = [agency.tokens]
  let stopping = false

  async function count(
    kind: string,
    expected: number,
    request: () => Promise<{ status: number; text: string }>
  ): Promise<string> {
    try {
      const { status, text } = await request()
      if (status === expected) counts[kind] = (counts[kind] ?? 0) + 1
      else faults.push(`${kind}: ${status} ${text}`)
      return status === expected ? text : ''
    } catch (err) {
      faults.push(`${kind}: ${err} ${(err as Error).cause ?? ''}`)
      return ''
    }
  }

  const send = async (path: string, init: RequestInit) => {
    const reply = await server.fetch(`/api/v1${path}`, init)
    return { status: reply.status, text: await reply.text() }
  }
  const json = (body: object): RequestInit => ({
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body)
  })
  const bearer = () => ({ authorization: `Bearer ${sessions[0]?.access_token}` })

  const works = {
    read: () => count('read', 200, () => send('/users/me', { headers: bearer() })),
    async refresh() {
      const text = await count('refresh', 200, () =>
        send('/auth/refresh', json({ refresh_token: sessions[0]?.refresh_token }))
      )
      if (text !== '') sessions[0] = JSON.parse(text)
    },
    sign_in: () => count('sign_in', 200, () => send('/auth/login', json({ email: agency.email, password }))),
    upload() {
      const form = new FormData()
      form.set('file', new Blob(['some text of a file']), 'file.txt')
      return count('upload', 201, () => send('/files', { method: 'POST', headers: bearer(), body: form }))
    }
  }

  async function repeat(kind: keyof typeof works): Promise<void> {
    while (!stopping) {
      await works[kind]()
      await sleep(pauses[kind])
    }
  }

  const running = (['read', 'read', 'refresh', 'sign_in', 'upload'] as const).map(repeat)
  return {
    ...{ faults, counts, sessions },
    async stop() {
      stopping = true
      await Promise.all(running)
    }
  }
}

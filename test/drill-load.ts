import { opaqueBytes } from './bytes.ts'
import type { Tenant } from './harness.ts'

/*
 * Clients of a drill, who write until they are told to stop and remember what was acknowledged.
 */

export type Acknowledged = { kind: 'invitation' | 'file'; id: string; agency: string }

export type Load = {
  /** Ends all requests under way, and resolves to what was acknowledged since the start or the last pause. */
  pause(): Promise<Acknowledged[]>
  resume(): void
  /** Answers that no request may get while everything is well. */
  faults: string[]
}

/** Starts clients who each invite somebody or upload a file, again and again, for their agency. */
export function startLoad(url: string, tenants: readonly Tenant[], { clients, fileBytes }: LoadOptions): Load {
  let acknowledged: Acknowledged[] = []
  let running: Promise<void>[] = []
  let stopping = false
  let count = 0
  const faults: string[] = []

  async function send(tenant: Tenant): Promise<void> {
    const number = ++count
    const kind = number % 2 === 0 ? 'invitation' : 'file'
    const form = new FormData()
    form.set('file', new Blob([opaqueBytes(fileBytes)]), `file-${number}.bin`)
    const reply = await fetch(`${url}/api/v1/${kind === 'file' ? 'files' : 'invitations'}`, {
      method: 'POST',
      headers: {
        authorization: `Bearer ${tenant.owner.tokens.access_token}`,
        ...(kind === 'invitation' && { 'content-type': 'application/json' })
      },
      body: kind === 'file' ? form : JSON.stringify({ email: `guest-${number}@${tenant.slug}.example`, role: 'member' })
    })
    const text = await reply.text()
    if (reply.status === 201) acknowledged.push({ kind, id: JSON.parse(text).id, agency: tenant.id })
    else faults.push(`${kind}: ${reply.status} ${text}`)
  }

  async function work(tenant: Tenant): Promise<void> {
    while (!stopping) await send(tenant).catch((err) => faults.push(String(err)))
  }

  function resume(): void {
    stopping = false
    running = Array.from({ length: clients }, (_, index) => work(tenants[index % tenants.length] as Tenant))
  }

  resume()
  return {
    async pause() {
      stopping = true
      await Promise.all(running)
      const done = acknowledged
      acknowledged = []
      return done
    },
    resume,
    faults
  }
}

export type LoadOptions = { clients: number; fileBytes: number }

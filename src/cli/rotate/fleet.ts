import { lookup } from 'node:dns/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Config } from '../../config/config.ts'
import { fingerprint } from '../../secrets/fingerprints.ts'
import type { SecretsReport } from '../../secrets/live-secrets.ts'
import { Refusal } from '../operator.ts'

/** What a process says on the internal listener. */
type WorkerReport = {
  worker: string
  status: string
  secrets?: SecretsReport
}
type SeenWorker = WorkerReport & { listener: string }

export type Fleet = ReturnType<typeof openFleet>
export type FleetOptions = { listener: string[]; timeout: number }

const pollMs = 500
const requestMs = 5000

/**
 * The serving processes, as their internal listeners describe them. A name with several addresses, such as that of a service
 * of Compose, stands for all of them.
 */
export function openFleet({ metricsHost, metricsPort }: Config, { listener, timeout }: FleetOptions) {
  const given = listener.length > 0 ? listener : metricsPort > 0 ? [`http://${metricsHost}:${metricsPort}`] : []
  if (given.length === 0) {
    throw new Refusal(
      'name the internal listener of each server with --listener, or set METRICS_PORT: it says what each process uses'
    )
  }

  async function addresses(): Promise<string[]> {
    const each = await Promise.all(
      given.map(async (text) => {
        if (!URL.canParse(text)) throw new Refusal(`${text} is no URL such as http://127.0.0.1:9464`)
        const url = new URL(text)
        const found = await lookup(url.hostname.replace(/^\[|\]$/g, ''), { all: true }).catch(() => {
          throw new Refusal(`${url.hostname} has no address`)
        })
        return found.map(
          ({ address, family }) => `${url.protocol}//${family === 6 ? `[${address}]` : address}:${url.port || 80}`
        )
      })
    )
    return [...new Set(each.flat())]
  }

  async function ask(listener: string): Promise<SeenWorker[]> {
    try {
      const reply = await fetch(`${listener}/health`, { signal: AbortSignal.timeout(requestMs) })
      const { workers } = (await reply.json()) as { workers?: WorkerReport[] }
      return (workers ?? []).map((worker) => ({ ...worker, listener }))
    } catch {
      return [{ listener, worker: '?', status: 'silent' }]
    }
  }

  const look = async (): Promise<SeenWorker[]> => (await Promise.all((await addresses()).map(ask))).flat()

  /** The processes that do not use exactly these values, each with the reason. */
  async function behind(name: string, values: readonly string[]): Promise<string[]> {
    const workers = await look()
    if (workers.length === 0) return ['no process answers']
    const late = await Promise.all(
      workers.map(async ({ listener, worker, secrets }) => {
        if (secrets && (await uses(secrets, name, values))) return []
        const refused = secrets?.refused.some((text) => text.includes(name))
        return [
          `process ${worker} at ${listener} ${secrets ? (refused ? 'refuses it' : 'has another one') : 'is silent'}`
        ]
      })
    )
    return late.flat()
  }

  async function uses({ salt, in_force }: SecretsReport, name: string, values: readonly string[]): Promise<boolean> {
    const wanted = await Promise.all(values.map((value) => fingerprint(salt, name, value)))
    return JSON.stringify(in_force[name]) === JSON.stringify(wanted)
  }

  return {
    behind,
    /** Waits until every process uses exactly these values of a setting. Throws Refusal after the time-out. */
    async waitFor(name: string, values: readonly string[]): Promise<void> {
      const deadline = performance.now() + timeout * 1000
      for (;;) {
        const late = await behind(name, values)
        if (late.length === 0) return
        if (performance.now() > deadline) {
          throw new Refusal(
            `${name}: after ${timeout} s ${late.join('; ')}. Nothing is lost: run the command again when that is mended`
          )
        }
        await sleep(pollMs)
      }
    }
  }
}

import { existsSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { ping } from '../../db/queries/directory.ts'
import { archiveLateSeconds, isArchiveStuck, readArchive } from '../../db/queries/operations/archive.ts'

export type CheckStatus = 'ok' | 'down'
export type Check = { status: CheckStatus; latency_ms: number }
/** A state that is no reason to send requests elsewhere, and that an operator should know. */
export type Condition = { status: 'ok' | 'degraded'; reason?: string }
/** What only operators see. A part that could not be looked at, or that there is not, is absent. */
export type Inspection = {
  disk?: Condition & { free_bytes: number; free_share: number }
  replica?: Condition & { behind_seconds: number | null }
  backup?: Condition & { archived_seconds: number }
}
export type HealthReport = { database: Check; storage: Check; redis?: Check }

declare module 'fastify' {
  interface FastifyInstance {
    health: {
      /**
       * Checks the database, the object store and Redis. Each is checked at most once a second, however often this is
       * called. Without the database nothing is served. Without one of the others, only the operations that need it
       * fail. `redis` is absent when no Redis is configured.
       */
      report(): Promise<HealthReport>
      /** Looks at the disk, the replica and the archive of the database, at most once in ten seconds. Never rejects. */
      inspect(): Promise<Inspection>
      /** True when this process has begun to shut down. */
      draining: boolean
    }
  }
}

const freshForMs = 1000
const timeoutMs = 2000
const inspectedForMs = 10_000
/** The free part of the disk of DATA_DIR below which an upload may soon fail. */
const minFreeShare = 0.1
/** A restore would lose what came after the archive. */
const maxArchiveSeconds = 3600

/** Reports whether the process can serve. While it shuts down, each connection closes after its reply. */
export default fp(
  async (app) => {
    const database = cachedCheck(() => app.gate.query(systemScope, ping, {}))
    const storage = cachedCheck(() => app.objects.check())
    const redis = app.shared.check && cachedCheck(app.shared.check)

    const health = {
      draining: false,
      async report(): Promise<HealthReport> {
        const checks = await Promise.all([database(), storage(), redis?.()])
        return { database: checks[0], storage: checks[1], ...(checks[2] && { redis: checks[2] }) }
      }
    }
    app.metrics.counter('aggios_secret_changes_total', 'New secrets that this process has met while it runs', () => {
      const { adopted, refused } = app.secrets.stats()
      return [
        { labels: { outcome: 'adopted' }, value: adopted },
        { labels: { outcome: 'refused' }, value: refused }
      ]
    })
    app.metrics.gauge(
      'aggios_secrets_refused',
      'New secrets that this process can not use, and tries again',
      () => app.secrets.stats().waiting
    )
    app.decorate('health', Object.assign(health, { inspect: remembered(() => inspect(app)) }))
    // in onSend, so that the connections of requests that began before the shutdown close too
    app.addHook('onSend', (_request, reply, _payload, done) => {
      if (health.draining) reply.header('connection', 'close')
      done()
    })
    app.addHook('preClose', async () => {
      health.draining = true
    })
  },
  { name: 'health', dependencies: ['database', 'metrics', 'objects', 'redis'] }
)

/** Remembers the result of a look for a moment. */
function remembered<T>(look: () => Promise<T>): () => Promise<T> {
  let last: { at: number; result: Promise<T> } | undefined
  return () => {
    if (!last || performance.now() - last.at > inspectedForMs) last = { at: performance.now(), result: look() }
    return last.result
  }
}

async function inspect(app: FastifyInstance): Promise<Inspection> {
  const [disk, backup] = await Promise.all([
    inspectDisk(app.config.dataDir).catch(() => undefined),
    inspectArchive(app).catch(() => undefined)
  ])
  const replica = app.replica && inspectReplica(app.replica)
  return { ...(disk && { disk }), ...(replica && { replica }), ...(backup && { backup }) }
}

const conditionOf = (reason: string | false): Condition =>
  reason === false ? { status: 'ok' } : { status: 'degraded', reason }

async function inspectDisk(dataDir: string): Promise<Inspection['disk']> {
  let folder = resolve(dataDir)
  while (!existsSync(folder)) folder = dirname(folder)
  const { bavail, blocks, bsize } = await statfs(folder)
  const free_share = blocks === 0 ? 1 : Math.round((bavail / blocks) * 1000) / 1000
  const full = free_share < minFreeShare && `less than ${minFreeShare * 100} % of the disk of DATA_DIR is free`
  return { ...conditionOf(full), free_bytes: bavail * bsize, free_share }
}

function inspectReplica(replica: NonNullable<FastifyInstance['replica']>): Inspection['replica'] {
  const { usable, behind_seconds } = replica.stats()
  return { ...conditionOf(!usable && 'the replica is away or behind, and the primary answers'), behind_seconds }
}

async function inspectArchive(app: FastifyInstance): Promise<Inspection['backup']> {
  const late = new Promise<[]>((resolve) => setTimeout(resolve, timeoutMs, []).unref())
  const [archive] = await Promise.race([app.gate.query(systemScope, readArchive, {}), late])
  if (!archive?.archiving) return undefined
  const archived_seconds = Math.round(archive.archived_seconds)
  const reason =
    (archive.failing && 'PostgreSQL cannot archive its log') ||
    (isArchiveStuck(archive, archiveLateSeconds) && 'full parts of the log wait, and none is archived') ||
    (archived_seconds > maxArchiveSeconds && `nothing was archived for more than ${maxArchiveSeconds} s`)
  return { ...conditionOf(reason), archived_seconds }
}

/** Remembers the result of a check for a moment. A check that takes too long counts as `down`. */
function cachedCheck(check: () => Promise<unknown>): () => Promise<Check> {
  let last: { at: number; result: Promise<Check> } | undefined
  async function run(): Promise<Check> {
    const startedAt = performance.now()
    const late = new Promise<CheckStatus>((resolve) => setTimeout(resolve, timeoutMs, 'down').unref())
    const answer = check().then(
      () => 'ok' as const,
      () => 'down' as const
    )
    const status = await Promise.race([answer, late])
    return { status, latency_ms: Math.round((performance.now() - startedAt) * 10) / 10 }
  }
  return () => {
    if (!last || Date.now() - last.at > freshForMs) last = { at: Date.now(), result: run() }
    return last.result
  }
}

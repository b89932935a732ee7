import { Server as NetServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import { buildApp } from '../app.ts'
import type { Config } from '../config/config.ts'
import type { Family } from '../metrics.ts'
import type { Level } from '../observability/log-level.ts'
import type { SecretsReport, SecretValues } from '../secrets/live-secrets.ts'
import { protectUnsentReplies } from './idle-connections.ts'

type HealthReport = Awaited<ReturnType<FastifyInstance['health']['report']>>
type Check = HealthReport['storage']
/** The check of a store that answers but belongs to another database, so nothing is removed from it. */
type FencedCheck = { status: 'degraded'; latency_ms: number; reason: string }
/** With the latency above which a service counts as slow, which changes no status. */
type Timed<T> = T & { slow_over_ms: number; slow: boolean }

/** The state of a serving process, as operators see it. */
export type ProcessHealth = {
  pid: number
  uptime_seconds: number
  draining: boolean
  checks: { database: Timed<Check>; storage: Timed<Check | FencedCheck>; redis?: Timed<Check> }
  /** Of the disk, the replica and the backups. */
  conditions: Awaited<ReturnType<FastifyInstance['health']['inspect']>>
  connections: ReturnType<FastifyInstance['gate']['stats']>
  revocations: ReturnType<FastifyInstance['revocations']['stats']>
  secrets: SecretsReport
}

/** The reports that a serving process can give. */
export type Reports = { metrics: Family[]; health: ProcessHealth }

export type Serving = Awaited<ReturnType<typeof serve>>

/** The serving processes: this process alone, or its workers. */
export type Processes = {
  /** Resolves to the port when all processes serve. */
  ready: Promise<number>
  /** Collects a report from each process; undefined for a process that failed to give one in time. */
  collect<K extends keyof Reports>(what: K): Promise<{ worker: string; report: Reports[K] | undefined }[]>
  /** Changes what all processes log, also those that start later. */
  setLogLevel(level: Level): void
  /** The number of restarts of each worker. */
  restarts(): { worker: string; count: number }[]
  /** Hands over secrets that have changed. Each process takes them over by itself, and goes on with the old ones until then. */
  renew(values: SecretValues): void
  /** Shuts down gracefully. */
  drain(reason: object): Promise<void>
  /** Kills the workers that have not ended. */
  kill(): void
}

/** Serves in this process, without workers. */
export function serveInProcess(config: Config, onFault: () => void): Processes {
  let serving: Serving | undefined
  const starting = serve(config, onFault).then((started) => {
    serving = started
    return started
  })
  return {
    ready: starting.then(({ port }) => port),
    collect: async (what) => [{ worker: '1', report: await serving?.report(what) }],
    setLogLevel: (level) =>
      void starting.then(
        (started) => started.setLogLevel(level),
        () => {}
      ),
    restarts: () => [],
    // a start that fails says so itself
    renew: (values) => void starting.then((started) => started.renew(values)).catch(() => {}),
    drain: async (reason) => (await starting.catch(() => undefined))?.drain(reason),
    kill() {}
  }
}

/**
 * How long readiness says 503 before the listener closes: longer than a load balancer's interval between health checks.
 */
const drainNoticeMs = 3000
/** A load balancer that has sent no request for this long has stopped sending. */
const quietMs = 500
/**
 * How long idle connections stay open for one more request. A request on a connection that is just closed gets no
 * answer.
 */
const lingerMs = 2000
/**
 * How long all workers take to close their listeners. A client that is refused earlier may connect to a worker that
 * closes next.
 */
const listenersCloseMs = 100
/** How often a drain polls its conditions. */
const pollMs = 50
/** Load balancers call this path also when they send no other requests. */
const readinessPath = '/api/v1/health/ready'
/** How long requests may still run after an uncaught exception. */
export const crashTimeoutMs = 2000

/**
 * Starts the application in this process. Calls `onFault` after an uncaught exception, when the running requests have
 * ended or were cut off.
 */
export async function serve(config: Config, onFault: () => void) {
  const app = buildApp(config)
  const connections = protectUnsentReplies(app.server)
  try {
    await app.ready()
    await app.listen({ host: config.host, port: config.port })
  } catch (err) {
    await app.close().catch(() => {})
    throw err
  }
  const { port } = app.server.address() as { port: number }
  let draining: Promise<void> | undefined

  /**
   * For a process behind a proxy: goes on serving for a while, with readiness at 503, so that the proxy stops sending
   * before the listener closes. Requests in flight at that moment would be lost, so a proxy that still sends gets the
   * same time again.
   */
  async function announceDrain(): Promise<void> {
    app.health.draining = true
    const notice = Math.min(drainNoticeMs, (config.shutdownTimeout * 1000) / 4)
    let quietPolls = 0
    app.server.on('request', ({ url }) => {
      if (!url?.startsWith(readinessPath)) quietPolls = 0
    })
    const startedAt = performance.now()
    const elapsed = () => performance.now() - startedAt
    // counts polls instead of time: a process that got no CPU has not seen the requests that arrived meanwhile
    while (elapsed() < notice || (quietPolls < quietMs / pollMs && elapsed() < 2 * notice)) {
      await sleep(pollMs)
      quietPolls++
    }
  }

  /** Refuses new connections, so that clients can go to another process. Open connections get one more reply. */
  async function closeListener(): Promise<void> {
    // not the close of node:http, which also closes idle connections
    NetServer.prototype.close.call(app.server)
    if (connections.open() > 0) await sleep(listenersCloseMs)
    app.health.draining = true
  }

  /**
   * Waits until clients stop using their connections. While the process drains, each reply closes its connection.
   * Connections without a request for the whole timeout count as unused. `quietForMs` says how long they have been
   * quiet already.
   */
  async function waitForConnections(quietForMs: number): Promise<void> {
    const timeoutMs = Math.min(lingerMs, (config.shutdownTimeout * 1000) / 4)
    // counts polls, as above
    for (let quiet = quietForMs; connections.open() > 0; quiet += pollMs) {
      if (connections.areBusy()) quiet = 0
      if (quiet >= timeoutMs) return
      await sleep(pollMs)
    }
  }

  async function drainConnections(notice: boolean): Promise<void> {
    if (notice && config.trustProxy.length > 0) {
      await announceDrain()
      app.eventStreams.end()
      return waitForConnections(drainNoticeMs)
    }
    await closeListener()
    app.eventStreams.end()
    await waitForConnections(0)
  }

  /**
   * Closes the app, and connections that become idle later: a reply that began before the drain could not say `close`.
   */
  async function closeApp(): Promise<void> {
    const timer = setInterval(() => app.server.closeIdleConnections(), pollMs)
    await app.close().finally(() => clearInterval(timer))
  }

  async function closeAfter(before: Promise<void>, timeoutMs: number): Promise<void> {
    const late = sleep(timeoutMs, 'late' as const, { ref: false })
    if ((await Promise.race([before.then(closeApp), late])) === 'late') {
      app.log.warn('requests were cut off by the shutdown')
      app.server.closeAllConnections()
    }
  }

  /**
   * Shuts down without dropping a request: tells load balancers, accepts no more connections, lets every reply finish
   * and its connection close, waits for idle connections, then closes the pools. What runs longer than SHUTDOWN_TIMEOUT
   * allows is cut off. A second call waits for the same shutdown.
   */
  function drain(reason: object, { notice = true } = {}): Promise<void> {
    app.log.info(reason, 'shutting down')
    draining ??= closeAfter(drainConnections(notice), config.shutdownTimeout * 800)
    return draining
  }

  /**
   * After an uncaught exception the state of the process is unknown: it accepts nothing new, lets running requests end,
   * and exits.
   */
  async function crash(err: unknown): Promise<void> {
    app.log.fatal({ err }, 'nobody caught this: the process ends')
    app.errorReports?.report(err, 'fatal')
    draining ??= closeAfter(Promise.resolve(), crashTimeoutMs)
    await draining.catch(() => {})
    onFault()
  }
  process.on('uncaughtException', crash)

  const reports: { [K in keyof Reports]: () => Promise<Reports[K]> } = {
    metrics: () => app.metrics.collect(),
    health: async () => ({
      pid: process.pid,
      uptime_seconds: Math.round(process.uptime()),
      draining: app.health.draining,
      checks: timedChecks(await app.health.report(), app.storeFence.reason()),
      conditions: await app.health.inspect(),
      connections: app.gate.stats(),
      revocations: app.revocations.stats(),
      secrets: await app.secrets.report()
    })
  }

  /** Makes a report for the internal listener. Undefined on failure: a report must not end the process. */
  async function report<K extends keyof Reports>(what: K): Promise<Reports[K] | undefined> {
    try {
      return await reports[what]()
    } catch (err) {
      app.log.error({ err, what }, 'the process can not tell how it is')
      return undefined
    }
  }

  function setLogLevel(level: Level): void {
    app.log.level = level
  }

  return { port, drain, report, setLogLevel, renew: app.secrets.renew, onAdopted: app.secrets.onAdopted }
}

/** Above these latencies a service makes requests slow. */
const slowOverMs = { database: 100, storage: 1000, redis: 50 }

/** Adds to the public health report what only operators see: what is slow, and why nothing is removed from the store. */
function timedChecks({ database, storage, redis }: HealthReport, reason: string | undefined): ProcessHealth['checks'] {
  const timed = <T extends { latency_ms: number }>(check: T, slow_over_ms: number): Timed<T> => {
    return { ...check, slow_over_ms, slow: check.latency_ms > slow_over_ms }
  }
  const fenced = reason !== undefined && storage.status === 'ok'
  return {
    database: timed(database, slowOverMs.database),
    storage: timed(fenced ? { ...storage, status: 'degraded', reason } : storage, slowOverMs.storage),
    ...(redis && { redis: timed(redis, slowOverMs.redis) })
  }
}

import { Server as NetServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import { buildApp } from '../app.ts'
import type { Config } from '../config/config.ts'
import type { Family } from '../metrics.ts'
import { spareReplies } from './idle-connections.ts'

type HealthReport = Awaited<ReturnType<FastifyInstance['health']['report']>>
type Check = HealthReport['storage']
/** The store answers, and nothing is removed from it. */
type FencedCheck = { status: 'degraded'; latency_ms: number; reason: string }

/** What a process that serves says of itself to whoever may know. */
export type ProcessHealth = {
  pid: number
  uptime_seconds: number
  draining: boolean
  checks: Omit<HealthReport, 'storage'> & { storage: Check | FencedCheck }
  connections: ReturnType<FastifyInstance['gate']['stats']>
  revocations: ReturnType<FastifyInstance['revocations']['stats']>
}

/** What can be asked of a process that serves. */
export type Reports = { metrics: Family[]; health: ProcessHealth }

export type Serving = Awaited<ReturnType<typeof serve>>

/** All that serves: this process, or workers of it. */
export type Processes = {
  /** The port, once all of them serve. */
  ready: Promise<number>
  /** What each says; undefined from one that could not tell, or not in time. */
  ask<K extends keyof Reports>(what: K): Promise<{ worker: string; report: Reports[K] | undefined }[]>
  /** How often each was replaced. */
  restarts(): { worker: string; count: number }[]
  drain(reason: object): Promise<void>
  /** Ends at once what has not ended. */
  cutOff(): void
}

/** This process alone. */
export function serveAlone(config: Config, onFault: () => void): Processes {
  let serving: Serving | undefined
  const starting = serve(config, onFault).then((started) => {
    serving = started
    return started
  })
  return {
    ready: starting.then(({ port }) => port),
    ask: async (what) => [{ worker: '1', report: await serving?.report(what) }],
    restarts: () => [],
    drain: async (reason) => (await starting.catch(() => undefined))?.drain(reason),
    cutOff() {}
  }
}

/** Longer than the interval in which a load balancer asks for health. */
const noticeMs = 3000
/** A load balancer that has sent nothing for so long has noticed. */
const quietMs = 500
/** How long a connection that is idle may yet be used: whoever sends when it is closed gets no answer. */
const lingerMs = 2000
/** Until all workers have shut the door. Whoever is sent away before comes again to one that nobody opens. */
const doorMs = 100
/** How often a drain looks around. */
const turnMs = 50
/** What a load balancer asks, whether or not it sends requests. */
const readinessPath = '/api/v1/health/ready'
/** After a fault that nobody caught, what is under way may end, and no longer than that. */
export const lastBreathMs = 2000

/** The application in this process, listening. Calls `onFault` when the process can't go on and nothing is under way any more. */
export async function serve(config: Config, onFault: () => void) {
  const app = buildApp(config)
  const connections = spareReplies(app.server)
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
   * Behind a proxy: serves on for a moment while health says no, so that it looks elsewhere before the door is shut. What is on
   * its way then is lost, so a proxy that is late and still sends requests gets as much time again.
   */
  async function giveNotice(): Promise<void> {
    app.health.draining = true
    const notice = Math.min(noticeMs, (config.shutdownTimeout * 1000) / 4)
    let quietTurns = 0
    app.server.on('request', ({ url }) => {
      if (!url?.startsWith(readinessPath)) quietTurns = 0
    })
    const startedAt = performance.now()
    const passed = () => performance.now() - startedAt
    // in turns and not by the clock: a process that was kept from running has not seen what arrived meanwhile
    while (passed() < notice || (quietTurns < quietMs / turnMs && passed() < 2 * notice)) {
      await sleep(turnMs)
      quietTurns++
    }
  }

  /** With nothing in front: what comes from now on is refused, and can be sent elsewhere. Those who are here get a last reply. */
  async function shutDoor(): Promise<void> {
    // the one of node:http closes idle connections with it
    NetServer.prototype.close.call(app.server)
    if (connections.open() > 0) await sleep(doorMs)
    app.health.draining = true
  }

  /**
   * Each reply closes its connection now, so a client that uses one goes on until it is told. One that has been quiet for so
   * long is taken for unused.
   */
  async function linger(quietMs: number): Promise<void> {
    const patience = Math.min(lingerMs, (config.shutdownTimeout * 1000) / 4)
    // in turns, as above
    for (let quiet = quietMs; connections.open() > 0; quiet += turnMs) {
      if (connections.areBusy()) quiet = 0
      if (quiet >= patience) return
      await sleep(turnMs)
    }
  }

  async function sayGoodbye(notice: boolean): Promise<void> {
    if (notice && config.trustProxy.length > 0) {
      await giveNotice()
      return linger(noticeMs)
    }
    await shutDoor()
    await linger(0)
  }

  /** Closes also what becomes idle later: a reply that began before the shutdown could not say that it is the last. */
  async function closeAll(): Promise<void> {
    const timer = setInterval(() => app.server.closeIdleConnections(), turnMs)
    await app.close().finally(() => clearInterval(timer))
  }

  async function close(patienceMs: number, before: Promise<void>): Promise<void> {
    const late = sleep(patienceMs, 'late' as const, { ref: false })
    if ((await Promise.race([before.then(closeAll), late])) === 'late') {
      app.log.warn('requests were cut off by the shutdown')
      app.server.closeAllConnections()
    }
  }

  /**
   * Ends without dropping a request: says so to load balancers, takes no more connections, lets every reply finish and its
   * connection close, gives idle ones a while to be used once more, then closes the pools. Over its time what still runs is cut off. Asked again it is the same end.
   */
  function drain(reason: object, { notice = true } = {}): Promise<void> {
    app.log.info(reason, 'shutting down')
    draining ??= close(config.shutdownTimeout * 800, sayGoodbye(notice))
    return draining
  }

  /** Nobody knows what state the process is in, so it takes nothing new, lets others' requests end, and ends with 1. */
  async function die(err: unknown): Promise<void> {
    app.log.fatal({ err }, 'nobody caught this: the process ends')
    draining ??= close(lastBreathMs, Promise.resolve())
    await draining.catch(() => {})
    onFault()
  }
  process.on('uncaughtException', die)

  const reports: { [K in keyof Reports]: () => Promise<Reports[K]> } = {
    metrics: async () => app.metrics.collect(),
    health: async () => ({
      pid: process.pid,
      uptime_seconds: Math.round(process.uptime()),
      draining: app.health.draining,
      checks: withFence(await app.health.report(), app.storeFence.reason()),
      connections: app.gate.stats(),
      revocations: app.revocations.stats()
    })
  }

  /** For the internal listener. Undefined where it failed: who asks how the process is must not end it. */
  async function report<K extends keyof Reports>(what: K): Promise<Reports[K] | undefined> {
    try {
      return await reports[what]()
    } catch (err) {
      app.log.error({ err, what }, 'the process can not tell how it is')
      return undefined
    }
  }

  return { port, drain, report }
}

/** Strangers learn whether the store answers, and operators also why nothing is removed from it. */
function withFence(report: HealthReport, reason: string | undefined): ProcessHealth['checks'] {
  const { storage } = report
  if (reason === undefined || storage.status !== 'ok') return report
  return { ...report, storage: { ...storage, status: 'degraded', reason } }
}

import cluster, { type Worker } from 'node:cluster'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import type { Config } from '../config/config.ts'
import type { SecretValues } from '../secrets/live-secrets.ts'
import type { ToPrimary, ToWorker } from './messages.ts'
import type { Processes, Reports } from './serving.ts'

/** A worker ended and can't be replaced. The worker has reported the reason itself. */
export class WorkerEnded extends Error {
  readonly exitCode: number
  constructor(exitCode: number) {
    super('no worker stays alive')
    this.exitCode = exitCode
  }
}

/** A worker that served for this long started properly. */
const stableMs = 10_000
const maxEarlyExits = 5
const maxRestartDelayMs = 10_000
/** Longer than a worker waits for its database. */
export const reportTimeoutMs = 3000

/**
 * Keeps WEB_CONCURRENCY workers running, all on one port.
 *
 * A worker that exits is replaced, after a delay that doubles while workers exit early. When no worker can start, or
 * none becomes stable, `onFatal` is called instead, so that the service manager outside sees the failure instead of an
 * endless restart loop.
 */
export function startWorkers(config: Config, log: FastifyBaseLogger, onFatal: (err: WorkerEnded) => void): Processes {
  // Every worker accepts connections itself. When the primary hands them out, a connection on its way to a dying worker
  // is never closed and its client waits for ever: one per death in 14 of 14 trials, and none this way. 64 connections
  // spread 34 to 30
  cluster.schedulingPolicy = cluster.SCHED_NONE
  // fixes the scheduling policy, so it comes after the line above
  cluster.setupPrimary({ exec: join(import.meta.dirname, 'worker.ts'), serialization: 'advanced' })

  type Slot = { worker: Worker | undefined; servesSince: number | undefined; restarts: number }
  const slots: Slot[] = Array.from({ length: config.webConcurrency }, () => ({
    worker: undefined,
    servesSince: undefined,
    restarts: 0
  }))
  const answers = new Map<number, (report: unknown) => void>()
  let logLevel = config.logLevel
  /** The secrets that the files had last. A worker that starts gets those that another worker has found good, and then these. */
  let wanted: SecretValues | undefined
  let lastReportId = 0
  let earlyExits = 0
  let ending = false

  const nameOf = (slot: Slot) => String(slots.indexOf(slot) + 1)
  const servedMs = ({ servesSince }: Slot) => (servesSince === undefined ? 0 : Date.now() - servesSince)
  // the channel of a dying worker may be closed; its exit event follows
  const send = (worker: Worker, message: ToWorker) => void worker.send(message, () => {})

  /** Runs one worker. Resolves when it has exited. */
  async function runWorker(slot: Slot, onReady: (port: number) => void) {
    const worker = cluster.fork()
    slot.worker = worker
    worker.on('error', (err) => log.error({ err, worker: nameOf(slot) }, 'a worker could not be started'))
    worker.on('message', (message: ToPrimary) => {
      switch (message.type) {
        case 'hello':
          return send(worker, { type: 'start', config: { ...config, logLevel } })
        case 'ready':
          slot.servesSince = Date.now()
          if (wanted) send(worker, { type: 'secrets', values: wanted })
          return onReady(message.port)
        case 'adopted':
          return void Object.assign(config, message.values)
        case 'report':
          answers.get(message.id)?.(message.report)
      }
    })
    const [code, signal] = (await once(worker, 'exit').catch(() => [1, null])) as [number | null, string | null]
    const served = servedMs(slot)
    Object.assign(slot, { worker: undefined, servesSince: undefined })
    return { pid: worker.process.pid, code, signal, served }
  }

  /** Replaces the worker of a slot until the shutdown. Rejects with WorkerEnded when replacing it makes no sense. */
  async function keepRunning(slot: Slot, onReady: (port: number) => void): Promise<void> {
    while (!ending) {
      const { pid, code, signal, served } = await runWorker(slot, onReady)
      if (ending) return
      if (code !== 0) earlyExits = served < stableMs ? earlyExits + 1 : 0
      const others = slots.map(servedMs)
      const neverServed = served === 0 && others.every((ms) => ms === 0)
      const neverStable = earlyExits >= maxEarlyExits && others.every((ms) => ms < stableMs)
      if (neverServed || neverStable) throw new WorkerEnded(code || 1)
      slot.restarts++
      log.warn({ worker: nameOf(slot), pid, code, signal }, 'a worker ended and is replaced')
      await sleep(earlyExits < 2 ? 0 : Math.min(100 * 2 ** earlyExits, maxRestartDelayMs))
    }
  }

  /** Resolves to the port when a worker serves in this slot for the first time; never resolves after `onFatal`. */
  const startSlot = (slot: Slot) => new Promise<number>((onReady) => void keepRunning(slot, onReady).catch(onFatal))

  /** Starts one worker before the others, so that a failure that affects all of them is reported once. */
  async function startAll(): Promise<number> {
    const [first, ...others] = slots as [Slot, ...Slot[]]
    const port = await startSlot(first)
    await Promise.all(others.map(startSlot))
    return port
  }

  function requestReport(slot: Slot, what: keyof Reports): Promise<unknown> {
    const { worker, servesSince } = slot
    if (!worker || servesSince === undefined) return Promise.resolve(undefined)
    const id = ++lastReportId
    return new Promise((resolve) => {
      const settle = (report?: unknown) => {
        clearTimeout(timer)
        worker.off('exit', ended)
        resolve(report)
      }
      // a worker that has ended will not answer
      const ended = () => settle()
      const timer = setTimeout(settle, reportTimeoutMs)
      worker.once('exit', ended)
      answers.set(id, settle)
      send(worker, { type: 'report', id, what })
    }).finally(() => answers.delete(id))
  }

  return {
    ready: startAll(),
    collect: (what) =>
      Promise.all(
        slots.map(async (slot) => ({
          worker: nameOf(slot),
          report: (await requestReport(slot, what)) as never | undefined
        }))
      ),
    renew(values) {
      wanted = values
      // a worker that does not serve yet gets them when it does
      for (const { worker, servesSince } of slots) {
        if (worker && servesSince !== undefined) send(worker, { type: 'secrets', values })
      }
    },
    restarts: () => slots.map((slot) => ({ worker: nameOf(slot), count: slot.restarts })),
    setLogLevel(level) {
      logLevel = level
      for (const { worker } of slots) if (worker) send(worker, { type: 'log-level', level })
    },
    async drain(reason) {
      ending = true
      log.info({ ...reason, workers: slots.length }, 'shutting down')
      const alive = slots.flatMap(({ worker }) => worker ?? [])
      const ends = alive.map((worker) => once(worker, 'exit'))
      for (const worker of alive) send(worker, { type: 'drain', reason })
      await Promise.all(ends)
    },
    kill() {
      ending = true
      for (const { worker } of slots) worker?.process.kill('SIGKILL')
    }
  }
}

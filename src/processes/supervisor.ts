import cluster, { type Worker } from 'node:cluster'
import { once } from 'node:events'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import type { Config } from '../config/config.ts'
import type { ToPrimary, ToWorker } from './messages.ts'
import type { Processes, Reports } from './serving.ts'

/** A worker that ended where none could take its place; it has said why itself. */
export class WorkerEnded extends Error {
  readonly exitCode: number
  constructor(exitCode: number) {
    super('no worker stays alive')
    this.exitCode = exitCode
  }
}

/** One that has served for so long did not die of its start. */
const settledMs = 10_000
const maxEarlyDeaths = 5
const maxPauseMs = 10_000
/** More than a worker waits for its database. */
export const answerMs = 3000

/**
 * Keeps as many workers running as the configuration says, all on one port.
 *
 * One that dies is replaced, after a pause that doubles while they die young. When none can start, or none lives long enough
 * to speak of, `onHopeless` is called instead: a supervisor outside sees what is wrong, and nothing goes round in circles.
 */
export function startWorkers(
  config: Config,
  log: FastifyBaseLogger,
  onHopeless: (err: WorkerEnded) => void
): Processes {
  // Every worker accepts for itself. Handed out by the primary, a connection that is on its way to a worker that dies is never
  // closed and its client waits for ever: one for each death in 14 of 14, and none this way; 64 connections spread 34 to 30
  cluster.schedulingPolicy = cluster.SCHED_NONE
  // freezes the line above
  cluster.setupPrimary({ exec: join(import.meta.dirname, 'worker.ts'), serialization: 'advanced' })

  type Slot = { worker: Worker | undefined; servesSince: number | undefined; restarts: number }
  const slots: Slot[] = Array.from({ length: config.webConcurrency }, () => ({
    worker: undefined,
    servesSince: undefined,
    restarts: 0
  }))
  const answers = new Map<number, (report: unknown) => void>()
  let asked = 0
  let earlyDeaths = 0
  let ending = false

  const nameOf = (slot: Slot) => String(slots.indexOf(slot) + 1)
  const servedMs = ({ servesSince }: Slot) => (servesSince === undefined ? 0 : Date.now() - servesSince)
  // the channel of one that is just dying may be gone; its exit says so
  const tell = (worker: Worker, message: ToWorker) => void worker.send(message, () => {})

  /** One life of a worker. Resolves when it is over. */
  async function live(slot: Slot, onReady: (port: number) => void) {
    const worker = cluster.fork()
    slot.worker = worker
    worker.on('error', (err) => log.error({ err, worker: nameOf(slot) }, 'a worker could not be started'))
    worker.on('message', (message: ToPrimary) => {
      switch (message.type) {
        case 'hello':
          return tell(worker, { type: 'start', config })
        case 'ready':
          slot.servesSince = Date.now()
          return onReady(message.port)
        case 'report':
          answers.get(message.id)?.(message.report)
      }
    })
    const [code, signal] = (await once(worker, 'exit').catch(() => [1, null])) as [number | null, string | null]
    const served = servedMs(slot)
    Object.assign(slot, { worker: undefined, servesSince: undefined })
    return { pid: worker.process.pid, code, signal, served }
  }

  /** Keeps one slot filled for as long as the whole lives. Rejects when there is no hope. */
  async function keep(slot: Slot, onReady: (port: number) => void): Promise<void> {
    while (!ending) {
      const { pid, code, signal, served } = await live(slot, onReady)
      if (ending) return
      if (code !== 0) earlyDeaths = served < settledMs ? earlyDeaths + 1 : 0
      const others = slots.map(servedMs)
      const neverServed = served === 0 && others.every((ms) => ms === 0)
      const neverSettles = earlyDeaths >= maxEarlyDeaths && others.every((ms) => ms < settledMs)
      if (neverServed || neverSettles) throw new WorkerEnded(code || 1)
      slot.restarts++
      log.warn({ worker: nameOf(slot), pid, code, signal }, 'a worker ended and is replaced')
      await sleep(earlyDeaths < 2 ? 0 : Math.min(100 * 2 ** earlyDeaths, maxPauseMs))
    }
  }

  /** Resolves with the port when a worker serves in this slot for the first time, and never where there is no hope. */
  const fill = (slot: Slot) => new Promise<number>((onReady) => void keep(slot, onReady).catch(onHopeless))

  /** One goes first, so that what keeps all of them from starting is said once. */
  async function startAll(): Promise<number> {
    const [first, ...others] = slots as [Slot, ...Slot[]]
    const port = await fill(first)
    await Promise.all(others.map(fill))
    return port
  }

  function askOne(slot: Slot, what: keyof Reports): Promise<unknown> {
    const { worker, servesSince } = slot
    if (!worker || servesSince === undefined) return Promise.resolve(undefined)
    const id = ++asked
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, answerMs)
      answers.set(id, (report) => {
        clearTimeout(timer)
        resolve(report)
      })
      tell(worker, { type: 'report', id, what })
    }).finally(() => answers.delete(id))
  }

  return {
    ready: startAll(),
    ask: (what) =>
      Promise.all(
        slots.map(async (slot) => ({ worker: nameOf(slot), report: (await askOne(slot, what)) as never | undefined }))
      ),
    restarts: () => slots.map((slot) => ({ worker: nameOf(slot), count: slot.restarts })),
    async drain(reason) {
      ending = true
      log.info({ ...reason, workers: slots.length }, 'shutting down')
      const alive = slots.flatMap(({ worker }) => worker ?? [])
      const ends = alive.map((worker) => once(worker, 'exit'))
      for (const worker of alive) tell(worker, { type: 'drain', reason })
      await Promise.all(ends)
    },
    cutOff() {
      ending = true
      for (const { worker } of slots) worker?.process.kill('SIGKILL')
    }
  }
}

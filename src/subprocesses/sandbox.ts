import { setTimeout as sleep } from 'node:timers/promises'
import { overloaded } from '../http/problems.ts'
import { createBoundedQueue, QueueFull } from '../limits/bounded-queue.ts'
import { readUsage } from './process-usage.ts'
import { type EndReason, type HelperProcess, Lost, startHelper } from './subprocess.ts'

/** What a job may use. */
export type Limits = {
  /** Bytes that are resident. */
  memory: number
  /** Milliseconds of CPU, so that a job on a busy machine is not ended for what others use. */
  cpuMs: number
  /** Milliseconds by the clock, after which the machine is taken for overloaded. */
  wallMs: number
  /** How many jobs a process does before it is replaced: what one of them may have left behind ends with it. */
  jobs: number
}

type Options = {
  program: string
  args: string[]
  limits: Limits
  /** How many jobs may wait. */
  depth: number
  log: { warn(details: object, message: string): void }
}

/** Thrown for a job that passed a limit or broke its process: what it was given is to blame. */
export class JobRefused extends Error {
  readonly limit: string
  constructor(limit: string) {
    super(`the job was ended: ${limit}`)
    this.limit = limit
  }
}

export type Sandbox<Job, Result> = ReturnType<typeof createSandbox<Job, Result>>

/** How often a job's process is looked at. `ps` costs a process each time. */
const watchIntervalMs = process.platform === 'linux' ? 50 : 500
/** What a process of Node and its libraries may write to before any job, most of which it never touches. */
const dataOfNode = 1024 ** 3
/** After so much CPU a process is replaced. */
const lifeCpuSeconds = 120
/** Signals by which a process ends of itself: what it was working on broke it. */
const ownFaults: readonly unknown[] = ['SIGABRT', 'SIGBUS', 'SIGFPE', 'SIGILL', 'SIGSEGV', 'SIGSYS', 'SIGTRAP']

/**
 * Does jobs in a process of their own, so that whatever is in the bytes of strangers can only harm that process. It is started with
 * the first job, and replaced when it dies, when it passes a limit and after a number of jobs.
 *
 * One job at a time, so that whoever passes a limit is known; parties take turns. Throws `JobRefused` for a job that passed a limit
 * or broke two processes, and `overloaded` where too many wait or where the process was ended from outside twice.
 */
export function createSandbox<Job, Result>({ program, args, limits, depth, log }: Options) {
  const queue = createBoundedQueue(1, depth)
  let helper: HelperProcess<Job, Result> | undefined
  let done = 0
  let killed = 0
  let closed = false

  function start(): HelperProcess<Job, Result> {
    done = 0
    const started: HelperProcess<Job, Result> = startHelper<Job, Result>({
      program,
      args,
      answerMs: limits.wallMs,
      kernelLimits: { data: limits.memory + dataOfNode, cpuSeconds: lifeCpuSeconds },
      onEnd: (reason, wasReady) => {
        if (helper === started) helper = undefined
        if (closed || reason.reason === retired.reason) return
        killed++
        log.warn({ ...reason, wasReady }, 'a process that reads bytes of strangers ended and is replaced')
      }
    })
    return started
  }

  /** Ends the process when it passes a limit, for as long as `working` says so. */
  async function watch(watched: HelperProcess<Job, Result>, working: () => boolean): Promise<void> {
    const { pid } = watched
    if (pid === undefined) return
    const before = await readUsage(pid)
    while (working()) {
      await sleep(watchIntervalMs)
      const now = await readUsage(pid)
      if (!now || !working()) continue
      if (now.memory > limits.memory) watched.end({ limit: `more than ${Math.round(limits.memory / 2 ** 20)} MiB` })
      if (now.cpuMs - (before?.cpuMs ?? 0) > limits.cpuMs)
        watched.end({ limit: `more than ${limits.cpuMs / 1000} s of CPU` })
    }
  }

  async function attempt(job: Job): Promise<Result> {
    if (closed) throw new Lost({ reason: 'the server is shutting down' })
    helper ??= start()
    const current = helper
    let working = true
    void watch(current, () => working)
    try {
      return await current.run(job)
    } finally {
      working = false
      if (++done >= limits.jobs) current.end(retired)
    }
  }

  async function perform(job: Job): Promise<Result> {
    let lost: EndReason = {}
    for (let i = 0; i < 2; i++) {
      try {
        return await attempt(job)
      } catch (err) {
        if (!(err instanceof Lost)) throw err
        lost = err.reason
        if (lost.limit !== undefined) throw new JobRefused(lost.limit)
        if (closed) break
      }
    }
    if (ownFaults.includes(lost.signal)) throw new JobRefused('it broke the process that read it')
    throw overloaded({ headers: { 'retry-after': '5' }, cause: new Lost(lost) })
  }

  return {
    async run(job: Job, party?: string): Promise<Result> {
      try {
        return await queue.run(() => perform(job), party)
      } catch (err) {
        if (err instanceof QueueFull) throw overloaded({ headers: { 'retry-after': '1' }, cause: err })
        throw err
      }
    },
    /** Ends the process, whatever it is doing. */
    close(): void {
      closed = true
      helper?.end({ reason: 'the server is shutting down' })
    },
    stats: () => ({ ...queue.stats(), killed })
  }
}

const retired = { reason: 'it has done its number of jobs' }

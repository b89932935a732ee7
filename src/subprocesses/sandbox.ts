import { setTimeout as sleep } from 'node:timers/promises'
import { overloaded } from '../http/problems.ts'
import { createBoundedQueue, QueueFull } from '../limits/bounded-queue.ts'
import { readUsage } from './process-usage.ts'
import { type EndReason, type Subprocess, SubprocessEnded, startSubprocess } from './subprocess.ts'

/** The resources of one job, and the life of its subprocess. */
export type Limits = {
  /** Bytes of resident memory. */
  memory: number
  /**
   * Milliseconds of CPU of one job. CPU time, so that a busy machine does not end a job for what other processes use.
   */
  cpuMs: number
  /**
   * The timeout of one job, and of its wait for the subprocess, in milliseconds of wall-clock time. A job that exceeds it
   * means that the machine is overloaded.
   */
  wallMs: number
  /** The number of jobs after which the subprocess is replaced, so that anything a job left behind ends with it. */
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

/** Thrown for a job that exceeded a limit or crashed its subprocess. The job's input is the cause. */
export class JobRefused extends Error {
  readonly limit: string
  constructor(limit: string) {
    super(`the job was ended: ${limit}`)
    this.limit = limit
  }
}

export type Sandbox<Job, Result> = ReturnType<typeof createSandbox<Job, Result>>

/** The interval of the checks of memory and CPU. It is longer where each check has to start `ps`. */
const checkIntervalMs = process.platform === 'linux' ? 50 : 500
/** Bytes of data that Node and its libraries reserve before any job; most of them are never touched. */
const nodeDataBytes = 1024 ** 3
/** Seconds of CPU after which the kernel ends a subprocess. */
const maxCpuSeconds = 120
/** Signals that a process causes itself by a crash, so that the job is to blame. Other signals come from outside. */
const crashSignals: readonly unknown[] = ['SIGABRT', 'SIGBUS', 'SIGFPE', 'SIGILL', 'SIGSEGV', 'SIGSYS', 'SIGTRAP']

/**
 * Runs jobs with untrusted input in a subprocess, so that hostile bytes can only harm that subprocess. The subprocess
 * starts with the first job, and is replaced when it dies, when it exceeds a limit and after a number of jobs.
 *
 * Only one job runs at a time, so that a limit exceeded is always that job's. The others wait in a queue that is fair
 * by fairness key. A job whose subprocess ended without exceeding a limit is tried once more.
 *
 * Throws `JobRefused` when a job exceeded a limit, or when its second subprocess crashed too. Throws `overloaded` when
 * too many jobs wait, when one has waited for `wallMs`, or when the second subprocess was killed from outside or timed out.
 */
export function createSandbox<Job, Result>({ program, args, limits, depth, log }: Options) {
  const queue = createBoundedQueue(1, depth, limits.wallMs)
  let subprocess: Subprocess<Job, Result> | undefined
  let done = 0
  let killed = 0
  let closed = false

  function start(): Subprocess<Job, Result> {
    done = 0
    const started: Subprocess<Job, Result> = startSubprocess<Job, Result>({
      program,
      args,
      answerTimeoutMs: limits.wallMs,
      kernelLimits: { data: limits.memory + nodeDataBytes, cpuSeconds: maxCpuSeconds },
      onEnd: (reason, wasReady) => {
        if (subprocess === started) subprocess = undefined
        if (closed || reason.reason === recycled.reason) return
        killed++
        log.warn({ ...reason, wasReady }, 'a process that reads bytes of strangers ended and is replaced')
      }
    })
    return started
  }

  /**
   * Checks the usage of a subprocess while `isWorking` returns true, and ends the subprocess when it exceeds a limit.
   */
  async function enforceLimits(current: Subprocess<Job, Result>, isWorking: () => boolean): Promise<void> {
    const { pid } = current
    if (pid === undefined) return
    const before = await readUsage(pid)
    while (isWorking()) {
      await sleep(checkIntervalMs)
      const now = await readUsage(pid)
      if (!now || !isWorking()) continue
      if (now.memory > limits.memory) current.end({ limit: `more than ${Math.round(limits.memory / 2 ** 20)} MiB` })
      if (now.cpuMs - (before?.cpuMs ?? 0) > limits.cpuMs)
        current.end({ limit: `more than ${limits.cpuMs / 1000} s of CPU` })
    }
  }

  async function attempt(job: Job): Promise<Result> {
    if (closed) throw new SubprocessEnded({ reason: 'the server is shutting down' })
    subprocess ??= start()
    const current = subprocess
    let working = true
    void enforceLimits(current, () => working)
    try {
      return await current.run(job)
    } finally {
      working = false
      if (++done >= limits.jobs) current.end(recycled)
    }
  }

  async function runWithRetry(job: Job): Promise<Result> {
    let lastEnd: EndReason = {}
    for (let i = 0; i < 2; i++) {
      try {
        return await attempt(job)
      } catch (err) {
        if (!(err instanceof SubprocessEnded)) throw err
        lastEnd = err.reason
        if (lastEnd.limit !== undefined) throw new JobRefused(lastEnd.limit)
        if (closed) break
      }
    }
    if (crashSignals.includes(lastEnd.signal)) throw new JobRefused('it broke the process that read it')
    throw overloaded({ headers: { 'retry-after': '5' }, cause: new SubprocessEnded(lastEnd) })
  }

  return {
    async run(job: Job, fairnessKey?: string): Promise<Result> {
      try {
        return await queue.run(() => runWithRetry(job), fairnessKey)
      } catch (err) {
        if (err instanceof QueueFull) throw overloaded({ headers: { 'retry-after': '1' }, cause: err })
        throw err
      }
    },
    /** Kills the subprocess, with its job if it has one. */
    close(): void {
      closed = true
      subprocess?.end({ reason: 'the server is shutting down' })
    },
    stats: () => ({ ...queue.stats(), killed })
  }
}

const recycled = { reason: 'it has done its number of jobs' }

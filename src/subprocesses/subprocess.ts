import { type ChildProcess, fork } from 'node:child_process'

/** A message from the subprocess: it is ready for jobs, or the outcome of one job. */
export type Answer<Result> = 'ready' | { id: number; result: Result } | { id: number; error: string }

/** Thrown for each pending job when the subprocess ends. `reason` says how it ended. */
export class SubprocessEnded extends Error {
  readonly reason: EndReason
  constructor(reason: EndReason) {
    super('the subprocess ended')
    this.reason = reason
  }
}

export type EndReason = {
  err?: unknown
  code?: number | null
  signal?: NodeJS.Signals | null
  reason?: string
  limit?: string
}

type Options = {
  /** The path of the program, which calls `serveJobs` of job-loop.ts. */
  program: string
  args?: string[]
  env?: Record<string, string>
  /** The timeout of the start and of each job. A subprocess that exceeds it counts as stuck and is killed. */
  answerTimeoutMs: number
  /**
   * Limits that the kernel enforces: bytes of data (RLIMIT_DATA), so that a large allocation also fails between two
   * checks of sandbox.ts, and seconds of CPU in the subprocess's whole life, so that it ends even when the parent was
   * killed.
   */
  kernelLimits?: { data: number; cpuSeconds: number }
  /** Called once, when the subprocess has exited or was killed. */
  onEnd(reason: EndReason & { pid: number | undefined }, wasReady: boolean): void
}

export type Subprocess<Job, Result> = ReturnType<typeof startSubprocess<Job, Result>>

/** Killed when this process exits: a subprocess in an endless loop would not notice that its channel closes. */
const running = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL')
})

/**
 * Starts a subprocess that computes jobs. It ends with this process, and does not keep this process alive while it is
 * idle.
 */
export function startSubprocess<Job, Result>({
  program,
  args = [],
  env = {},
  answerTimeoutMs,
  kernelLimits,
  onEnd
}: Options) {
  const child = fork(program, args, {
    serialization: 'advanced',
    // not inherited: the environment of this process contains secrets
    env,
    execArgv: [],
    // a shell sets the limits and then executes Node, because Node can't set them for a child
    ...(kernelLimits && { execPath: '/bin/sh', execArgv: ['-c', ulimitScript(kernelLimits), process.execPath] }),
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    // makes it the leader of a session of its own: see job-loop.ts
    detached: true
  })
  const pending = new Map<
    number,
    { settle(answer: Exclude<Answer<Result>, 'ready'>): void; reject(err: SubprocessEnded): void }
  >()
  let lastJobId = 0
  let ready = false
  let ended = false
  const killStuck = () => end({ reason: `it gave no answer for ${answerTimeoutMs} ms` })
  const startTimer = setTimeout(killStuck, answerTimeoutMs).unref()
  running.add(child)
  unref()

  function end(reason: EndReason): void {
    if (ended) return
    ended = true
    clearTimeout(startTimer)
    // SIGKILL: it has no state to save, and ignores the milder signals
    child.kill('SIGKILL')
    running.delete(child)
    unref()
    onEnd({ ...reason, pid: child.pid }, ready)
    for (const { reject } of pending.values()) reject(new SubprocessEnded(reason))
  }

  child.on('error', (err) => end({ err }))
  child.on('exit', (code, signal) => end({ code, signal }))
  child.on('message', (answer: Answer<Result>) => {
    if (answer !== 'ready') return pending.get(answer.id)?.settle(answer)
    ready = true
    clearTimeout(startTimer)
  })

  /** Keeps this process alive while a job is pending. */
  function ref(): void {
    child.ref()
    child.channel?.ref()
  }
  function unref(): void {
    child.unref()
    child.channel?.unref()
  }

  async function run(job: Job): Promise<Result> {
    const id = ++lastJobId
    const jobTimer = setTimeout(killStuck, answerTimeoutMs)
    ref()
    try {
      return await new Promise((resolve, reject) => {
        pending.set(id, {
          settle: (answer) => ('error' in answer ? reject(new Error(answer.error)) : resolve(answer.result)),
          reject
        })
        // an error is ignored: a subprocess that can't be reached is ending, and its exit event rejects the job
        child.send({ id, job }, () => {})
      })
    } finally {
      clearTimeout(jobTimer)
      pending.delete(id)
      if (pending.size === 0) unref()
    }
  }

  return { pid: child.pid, run, end, isReady: () => ready }
}

/** Errors of `ulimit` are ignored: where the system lacks a limit, the checks of sandbox.ts remain. */
const ulimitScript = ({ data, cpuSeconds }: NonNullable<Options['kernelLimits']>) =>
  `ulimit -d ${Math.ceil(data / 1024)} 2>/dev/null; ulimit -t ${cpuSeconds} 2>/dev/null; exec "$0" "$@"`

import { type ChildProcess, fork } from 'node:child_process'

/** What a helper process says: that it can begin, and then how each job went. */
export type Answer<Result> = 'ready' | { id: number; result: Result } | { id: number; error: string }

/** Thrown where the process ended before it had answered. `reason` says how. */
export class Lost extends Error {
  readonly reason: EndReason
  constructor(reason: EndReason) {
    super('the helper process ended')
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
  /** The file that it runs: see helper-loop.ts. */
  program: string
  args?: string[]
  env?: Record<string, string>
  /** A process that is silent for longer is taken for stuck, at its start and at each job. */
  answerMs: number
  /**
   * What the kernel lets it have: bytes of data (RLIMIT_DATA), so that an allocation beyond fails between two looks of its watcher
   * too, and seconds of CPU in all its life, so that it ends when its watcher was killed.
   */
  kernelLimits?: { data: number; cpuSeconds: number }
  /** Called once, when it has ended or was ended. */
  onEnd(reason: EndReason & { pid: number | undefined }, wasReady: boolean): void
}

export type HelperProcess<Job, Result> = ReturnType<typeof startHelper<Job, Result>>

/** Those that live. One that never looks at its channel again would not notice that this process ends. */
const alive = new Set<ChildProcess>()
process.on('exit', () => {
  for (const child of alive) child.kill('SIGKILL')
})

/** Starts a process that does jobs for this one. It never outlives this process, nor keeps it from ending. */
export function startHelper<Job, Result>({ program, args = [], env = {}, answerMs, kernelLimits, onEnd }: Options) {
  const child = fork(program, args, {
    serialization: 'advanced',
    // nothing of this process's environment: there are secrets in it
    env,
    execArgv: [],
    // a shell can set limits and become the program; Node can't set them for a child
    ...(kernelLimits && { execPath: '/bin/sh', execArgv: ['-c', limited(kernelLimits), process.execPath] }),
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    // a session of its own: see helper-loop.ts
    detached: true
  })
  const pending = new Map<number, { settle(answer: Exclude<Answer<Result>, 'ready'>): void; lose(lost: Lost): void }>()
  let asked = 0
  let ready = false
  let over = false
  const stuck = () => end({ reason: `it gave no answer for ${answerMs} ms` })
  const starting = setTimeout(stuck, answerMs).unref()
  alive.add(child)
  letGo()

  function end(reason: EndReason): void {
    if (over) return
    over = true
    clearTimeout(starting)
    // it has nothing to put in order, and does not listen to less
    child.kill('SIGKILL')
    alive.delete(child)
    letGo()
    onEnd({ ...reason, pid: child.pid }, ready)
    for (const { lose } of pending.values()) lose(new Lost(reason))
  }

  child.on('error', (err) => end({ err }))
  child.on('exit', (code, signal) => end({ code, signal }))
  child.on('message', (answer: Answer<Result>) => {
    if (answer !== 'ready') return pending.get(answer.id)?.settle(answer)
    ready = true
    clearTimeout(starting)
  })

  function hold(): void {
    child.ref()
    child.channel?.ref()
  }
  function letGo(): void {
    child.unref()
    child.channel?.unref()
  }

  async function run(job: Job): Promise<Result> {
    const id = ++asked
    const late = setTimeout(stuck, answerMs)
    hold()
    try {
      return await new Promise((done, fail) => {
        pending.set(id, {
          settle: (answer) => ('error' in answer ? fail(new Error(answer.error)) : done(answer.result)),
          lose: fail
        })
        // one that is just dying can't be told; its exit says so
        child.send({ id, job }, () => {})
      })
    } finally {
      clearTimeout(late)
      pending.delete(id)
      if (pending.size === 0) letGo()
    }
  }

  return { pid: child.pid, run, end, isReady: () => ready }
}

/** What a system can't limit its watcher limits. */
const limited = ({ data, cpuSeconds }: NonNullable<Options['kernelLimits']>) =>
  `ulimit -d ${Math.ceil(data / 1024)} 2>/dev/null; ulimit -t ${cpuSeconds} 2>/dev/null; exec "$0" "$@"`

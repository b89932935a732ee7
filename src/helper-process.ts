import { fork } from 'node:child_process'

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
  /** Bytes of data that the kernel lets it have (RLIMIT_DATA). An allocation beyond fails, between two looks of its watcher too. */
  maxData?: number
  /** Called once, when it has ended or was ended. */
  onEnd(reason: EndReason & { pid: number | undefined }, wasReady: boolean): void
}

export type HelperProcess<Job, Result> = ReturnType<typeof startHelper<Job, Result>>

/** Starts a process that does jobs for this one. It never outlives this process, nor keeps it from ending. */
export function startHelper<Job, Result>({ program, args = [], env = {}, answerMs, maxData, onEnd }: Options) {
  const child = fork(program, args, {
    serialization: 'advanced',
    // nothing of this process's environment: there are secrets in it
    env,
    execArgv: [],
    // a shell can set the limit and become the program; Node can't set it for a child
    ...(maxData !== undefined && {
      execPath: '/bin/sh',
      execArgv: ['-c', `ulimit -d ${Math.ceil(maxData / 1024)} 2>/dev/null; exec "$0" "$@"`, process.execPath]
    }),
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
  letGo()

  function end(reason: EndReason): void {
    if (over) return
    over = true
    clearTimeout(starting)
    // it has nothing to put in order, and does not listen to less
    child.kill('SIGKILL')
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

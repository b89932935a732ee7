import { setTimeout as sleep } from 'node:timers/promises'
import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { recordJob } from '../../db/queries/operations/operators.ts'
import { describe } from '../../src/error-text.ts'
import { createPoller, type Poller } from '../../src/poller.ts'

/** How a run of a background job has ended. `off`: it did nothing, because it must not. */
export type JobResult =
  | { outcome: 'succeeded' }
  | { outcome: 'failed'; failure: unknown }
  | { outcome: 'off'; reason: string }

export type TaskRun = {
  /** Aborted when the process shuts down. The task begins nothing more then. */
  stopping: AbortSignal
  /** Reports an item that failed and is tried again by itself. The run counts as failed, and the task goes on. */
  itemFailed(err: unknown, facts?: object): void
}

export type Job = {
  /** The name in the records: letters and underscores. */
  name: string
  /** The pause after the end of a run. A random tenth of it is left out, so that processes do not run in step. */
  intervalMs: number
  /** Runs once when the process is ready. Otherwise the first run comes after the interval. */
  atStart?: boolean
  /** The reason why the job never runs, if there is one. */
  off?: string | undefined
  /** What a run does, one after the other. A task that rejects has failed, and the others go on. The keys name it in metrics. */
  tasks: Record<string, (run: TaskRun) => Promise<void>>
}

type Task = {
  name: string
  work: (run: TaskRun) => Promise<void>
  /** Why its last run failed. */
  failure: unknown
  rejectedInRow: number
  /** The runs of the job that leave it out, before it is tried again. */
  pausedRuns: number
}

declare module 'fastify' {
  interface FastifyInstance {
    jobs: {
      /**
       * Adds a background job. It runs in every process, one run at a time, until the process shuts down; what several
       * processes must not do twice is claimed in the database (src/due-work.ts).
       *
       * Call it after the `onClose` hook that closes what the tasks use, because these hooks run in reverse order.
       */
      define(job: Job): {
        /**
         * Runs all tasks now, or after the run in progress, and resolves when they have ended. Never rejects. Resolves to
         * undefined when the process shuts down.
         */
        run(): Promise<JobResult | undefined>
        /** Like `run`, for callers that do not wait. */
        wake(): void
      }
      /**
       * Records in the database that a run of a background job has succeeded, or failed with an error, so that operators see
       * when each last did, in whichever process. Never rejects: a job does not fail because that can't be recorded.
       */
      record(job: string, failure?: unknown): Promise<void>
    }
  }
}

const jitter = 0.1
/**
 * After failures in a row a task is tried in every second run, and then in every fourth. So one of a minute still fails more than
 * ten times an hour, as the alert AggiosJobFails expects.
 */
const longestPauseRuns = 4
/** A job that runs more often records its success once in this time. It is shorter than a minute without the jitter. */
const recordIntervalMs = 50_000

/**
 * Runs the background jobs: with pauses, backoff, metrics (`metrics.trackJob`, of this process), records in the database (of
 * all processes), logs and an orderly end.
 *
 * A shutdown aborts `stopping` and waits for the runs in progress, but not longer than half of SHUTDOWN_TIMEOUT. What was
 * abandoned then is done by another process when its lease is over.
 */
export default fp(
  async (app) => {
    const pollers: Poller[] = []
    let waitUntil: number | undefined
    let cannotRecord = false

    function stopAll(): void {
      waitUntil ??= performance.now() + app.config.shutdownTimeout * 500
      for (const poller of pollers) void poller.stop()
    }

    /** Waits for the run in progress to end, within the time that is left. */
    async function drain(job: string, poller: Poller): Promise<void> {
      stopAll()
      const timer = new AbortController()
      const ms = Math.max(0, (waitUntil ?? 0) - performance.now())
      const late = sleep(ms, 'late', { signal: timer.signal }).catch(() => undefined)
      if ((await Promise.race([poller.stop(), late])) === 'late')
        app.log.warn({ job }, 'a background job was abandoned by the shutdown')
      timer.abort()
    }

    async function record(job: string, failure?: unknown): Promise<void> {
      const values = { job, failure: failure === undefined ? null : describe(failure).slice(0, 500) }
      try {
        await app.gate.query(systemScope, recordJob, values)
        cannotRecord = false
      } catch (err) {
        app.log[cannotRecord ? 'debug' : 'warn']({ err, job }, 'a run of a job could not be recorded')
        cannotRecord = true
      }
    }

    /** Logs a failure that repeats itself once, so that a database that is away for an hour does not fill the log. */
    async function runTask(job: string, task: Task, stopping: AbortSignal): Promise<void> {
      const facts = { job, task: task.name }
      const before = task.failure
      task.failure = undefined
      function itemFailed(err: unknown, item: object = {}): void {
        app.log[task.failure === undefined ? 'warn' : 'debug'](
          { err, ...facts, ...item },
          `an item of ${job} failed, and is tried again`
        )
        task.failure ??= err
      }
      try {
        await task.work({ stopping, itemFailed })
        if (task.rejectedInRow > 0) app.log.info(facts, `${job} succeeds again`)
        task.rejectedInRow = 0
      } catch (err) {
        task.failure = err
        const repeated = task.rejectedInRow++ > 0 && describe(err) === describe(before)
        // what fails while the process ends is not tried again here
        app.log[repeated || stopping.aborted ? 'debug' : 'warn']({ err, ...facts }, `${job} failed, and is tried again`)
      }
      task.pausedRuns = Math.max(0, Math.min(2 ** (task.rejectedInRow - 1), longestPauseRuns) - 1)
    }

    function define({ name, intervalMs, atStart = false, off, tasks }: Job) {
      if (off !== undefined)
        return { run: async (): Promise<JobResult> => ({ outcome: 'off', reason: off }), wake() {} }
      const all = Object.entries(tasks).map(
        ([task, work]): Task => ({
          name: task,
          work: app.metrics.trackJob(task, intervalMs, work),
          failure: undefined,
          rejectedInRow: 0,
          pausedRuns: 0
        })
      )
      /** The next run was asked for, and leaves no task out. */
      let asked = false
      let recordedAt = Number.NEGATIVE_INFINITY

      async function runTasks(stopping: AbortSignal): Promise<JobResult | undefined> {
        const due = asked ? all : all.filter((task) => task.pausedRuns-- <= 0)
        asked = false
        for (const task of due) {
          if (stopping.aborted) return
          await runTask(name, task, stopping)
        }
        if (stopping.aborted) return
        const failed = all.find((task) => task.failure !== undefined)
        // without a task that has failed, the run says nothing about it
        const isNews = due.length === all.length && (failed || performance.now() - recordedAt >= recordIntervalMs)
        if (isNews) await record(name, failed?.failure)
        if (isNews) recordedAt = failed ? Number.NEGATIVE_INFINITY : performance.now()
        return failed ? { outcome: 'failed', failure: failed.failure } : { outcome: 'succeeded' }
      }

      const poller = createPoller({
        intervalMs,
        jitter,
        work: runTasks,
        onError: (err) => app.log.error({ err, job: name }, 'a background job has a fault')
      })
      const wake = () => {
        asked = true
        poller.wake()
      }
      pollers.push(poller)
      app.addHook('onReady', async () => {
        poller.start()
        if (atStart) wake()
      })
      app.addHook('onClose', () => drain(name, poller))
      return {
        run() {
          asked = true
          return poller.run()
        },
        wake
      }
    }

    app.decorate('jobs', { define, record })
    // early, while the last requests are answered
    app.addHook('preClose', async () => stopAll())
  },
  { name: 'jobs', dependencies: ['config', 'database', 'metrics'] }
)

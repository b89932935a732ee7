import type { Sample } from '../metrics.ts'

type JobRecord = { intervalMs: number; succeededAt: number; failures: number; seconds: number }

export type JobRecords = ReturnType<typeof createJobRecords>

/** Remembers of each background job of this process when it last succeeded, and how often it failed. */
export function createJobRecords() {
  const records = new Map<string, JobRecord>()
  const eachJob = (read: (record: JobRecord) => number) => (): Sample[] =>
    [...records].map(([job, record]) => ({ labels: { task: job }, value: read(record) }))

  return {
    /**
     * Returns `work` with its runs recorded under this name. The result and the rejection are those of `work`. The name
     * is a label, so it must be fixed in the code.
     */
    track<Args extends unknown[], Result>(
      job: string,
      intervalMs: number,
      work: (...args: Args) => Promise<Result>
    ): (...args: Args) => Promise<Result> {
      if (records.has(job)) throw new Error(`there are two jobs "${job}"`)
      const record: JobRecord = { intervalMs, succeededAt: 0, failures: 0, seconds: 0 }
      records.set(job, record)
      return async (...args) => {
        const startedAt = performance.now()
        try {
          const result = await work(...args)
          record.succeededAt = Date.now() / 1000
          return result
        } catch (err) {
          record.failures++
          throw err
        } finally {
          record.seconds = (performance.now() - startedAt) / 1000
        }
      }
    },
    /** Unix times. 0 for a job that has not succeeded since the process started. */
    lastSuccesses: eachJob(({ succeededAt }) => succeededAt),
    intervals: eachJob(({ intervalMs }) => intervalMs / 1000),
    failures: eachJob(({ failures }) => failures),
    lastDurations: eachJob(({ seconds }) => seconds)
  }
}

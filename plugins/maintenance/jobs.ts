import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { recordJob } from '../../db/queries/operations/operators.ts'
import { describe } from '../../src/error-text.ts'

/** The background jobs that are recorded. */
export type JobName = 'housekeeping' | 'object_sweep' | 'domain_checks' | 'outbox'

/** How a run of a background job has ended. `off`: it did nothing, because it must not. */
export type JobResult =
  | { outcome: 'succeeded' }
  | { outcome: 'failed'; failure: unknown }
  | { outcome: 'off'; reason: string }

declare module 'fastify' {
  interface FastifyInstance {
    jobs: {
      /**
       * Records in the database that a run of a background job has succeeded, or failed with an error, so that operators see
       * when each last did, in whichever process. Never rejects: a job does not fail because that can't be recorded.
       * Resolves to the result of the run.
       */
      record(job: JobName, failure?: unknown): Promise<JobResult>
    }
  }
}

/** Keeps the time of the last success of each background job in the database. `metrics.trackJob` keeps that of this process. */
export default fp(
  async (app) => {
    app.decorate('jobs', {
      async record(job: JobName, failure?: unknown): Promise<JobResult> {
        const values = { job, failure: failure === undefined ? null : describe(failure).slice(0, 500) }
        await app.gate
          .query(systemScope, recordJob, values)
          .catch((err) => app.log.warn({ err, job }, 'a run of a job could not be recorded'))
        return failure === undefined ? { outcome: 'succeeded' } : { outcome: 'failed', failure }
      }
    })
  },
  { name: 'jobs', dependencies: ['database'] }
)

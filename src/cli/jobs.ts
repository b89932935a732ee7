import { Argument } from 'commander'
import { findEmbeddedUrl } from '../../db/embedded.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { type JobRun, listJobs } from '../../db/queries/operations/operators.ts'
import { describe } from '../error-text.ts'
import { createOperatorCommand } from './command.ts'
import { end, operate, printable, readSettings } from './operator.ts'

/** The jobs that can be run by hand, each with the part of the application that runs it. The outbox is never idle. */
const runners = {
  housekeeping: 'housekeeping',
  object_sweep: 'objectSweep',
  domain_checks: 'domainChecks'
} as const
type Runnable = keyof typeof runners

export const command = createOperatorCommand(
  'jobs',
  'Shows when each background job last succeeded, and runs one now. Each server runs all of them by itself.'
)

command
  .command('list')
  .description('Lists the background jobs: their last success in any process, and their last failure.')
  .action(list)

command
  .command('run')
  .addArgument(new Argument('<job>', 'the job').choices(Object.keys(runners)))
  .description('Runs a job once, in this process, and waits for its end. Servers may run it meanwhile.')
  .action(runJob)

function list(): Promise<never> {
  return operate(async (gate) => {
    const jobs = await gate.query(systemScope, listJobs, {})
    const text = jobs.length === 0 ? 'no server has run a job yet' : jobs.map(describeRun).join('\n')
    return { text, data: { jobs } }
  })
}

const describeRun = ({ name, succeeded_at, failed_at, error }: JobRun) =>
  [
    `${name}: ${succeeded_at ? `succeeded ${succeeded_at.toISOString()}` : 'never succeeded'}`,
    failed_at ? `failed ${failed_at.toISOString()}: ${printable(error)}` : ''
  ]
    .filter(Boolean)
    .join(', ')

/** Starts the application without a listener, so that the job finds all that it needs. */
async function runJob(job: Runnable): Promise<never> {
  const config = readSettings()
  const databaseUrl = config.databaseUrl ?? findEmbeddedUrl(config.dataDir)
  if (!databaseUrl) end(69, 'there is no DATABASE_URL, and no server runs with its own PostgreSQL here')
  // loaded only here, which makes other commands faster
  const { buildApp } = await import('../app.ts')
  const logStream = { write: (line: string) => void process.stderr.write(line) }
  const app = buildApp(
    { ...config, databaseUrl, logLevel: config.logLevel === 'info' ? 'warn' : config.logLevel },
    { logStream }
  )
  try {
    await app.ready()
    const result = await app[runners[job]].run()
    await app.close()
    if (result?.outcome === 'succeeded') return end(0, `${job} has run`)
    if (result?.outcome === 'failed') return end(1, `${job} failed: ${printable(describe(result.failure))}`)
    return end(1, `${job} was not run: ${result?.reason ?? 'it was stopped'}`)
  } catch (err) {
    await app.close().catch(() => {})
    return end(1, `${job} failed: ${describe(err)}`)
  }
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()

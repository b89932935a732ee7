import { buildApp } from '../src/app.ts'
import { readConfig } from '../src/config/config.ts'

/*
 * One process of the product, which does at once what its background jobs do over time, and prints what that took as JSON.
 *
 * node --expose-gc bench/growth-worker.ts <slug prefix> <agencies to remember>
 */

const [, , prefix = '', agencies = '0'] = process.argv
/** Look-ups under way at once. */
const width = 64

/** What a process has taken: the milliseconds of each piece of work, and live memory in MB. */
export type Growth = { ms: Record<string, number>; mb: Record<string, number> }

const found: Growth = { ms: {}, mb: {} }

async function timed(name: string, work: () => Promise<unknown>): Promise<void> {
  const startedAt = performance.now()
  await work()
  found.ms[name] = performance.now() - startedAt
}

function liveMegabytes(): number {
  globalThis.gc?.()
  const { heapUsed, external } = process.memoryUsage()
  return (heapUsed + external) / 1024 ** 2
}

const app = buildApp(readConfig(process.env), { logStream: { write() {} } })
await timed('start', async () => app.ready())
found.mb.start = liveMegabytes()
await timed('poll', () => app.revocations.readNow())

async function failing(job: string, run: () => Promise<{ outcome: string; failure?: unknown } | undefined>) {
  const result = await run()
  if (result?.outcome === 'failed') throw new Error(`${job} failed`, { cause: result.failure })
}
await failing('housekeeping', app.housekeeping.run)
await timed('events', app.events.run)
await timed('metrics', () => app.metrics.collect())
for (const { name, samples } of await app.metrics.collect()) {
  if (name !== 'aggios_job_last_duration_seconds') continue
  for (const { labels, value } of samples) if (labels?.task && value > 0) found.ms[labels.task] = value * 1000
}

/** The agencies of a seed are numbered from 1. */
let next = 1
async function lookUp(): Promise<void> {
  for (let number = next++; number <= Number(agencies); number = next++) {
    if (!(await app.tenants.find(`${prefix}${number}`))) throw new Error(`there is no agency ${prefix}${number}`)
  }
}
await timed('look-ups', () => Promise.all(Array.from({ length: width }, lookUp)))
found.mb.remembered = liveMegabytes()
await app.close()
process.stdout.write(JSON.stringify(found))

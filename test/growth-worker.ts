import { buildApp } from '../src/app.ts'
import { readConfig } from '../src/config/config.ts'

/*
 * One process of the product, which does at once what its background jobs do over time, and prints what that took as JSON: for
 * `npm run bench -- --only growth`.
 *
 * node --expose-gc test/growth-worker.ts <slug prefix> <agencies to remember>
 */

const [, , prefix = '', agencies = '0'] = process.argv
/** Look-ups under way at once. */
const width = 64

/** The milliseconds of each piece of work, and live memory in MB. */
const found = { ms: {} as Record<string, number>, mb: {} as Record<string, number> }

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
await timed('place events', app.events.run)
await timed('poll', () => app.revocations.readNow())

const result = await app.housekeeping.run()
if (result?.outcome === 'failed') throw new Error('housekeeping failed', { cause: result.failure })
await timed('metrics', () => app.metrics.collect())
/** Jobs that also run every half second by themselves, so that their last run had nothing to do. */
const frequent = ['place_events', 'tell_of_events', 'webhooks', 'stale_parts']
for (const { name, samples } of await app.metrics.collect()) {
  if (name !== 'aggios_job_last_duration_seconds') continue
  for (const { labels, value } of samples)
    if (labels?.task && value > 0 && !frequent.includes(labels.task)) found.ms[labels.task] = value * 1000
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

import { collectDefaultMetrics, type MetricObjectWithValues, type MetricValue, Registry } from 'prom-client'
import type { Family, Sample } from './metrics.ts'

/** The interval at which the event loop's delay is sampled. */
const resolutionMs = 20

/**
 * Default metrics that are left out. The series of `nodejs_active_…` come and go, and some are gauges named like
 * counters. `nodejs_eventloop_lag_seconds` has percentiles here, which are made from other metrics below. prom-client
 * observes only the first of several garbage collections that Node reports together, so
 * plugins/observability/metrics.ts counts them.
 */
const omitted = /^nodejs_(?:active_.*|eventloop_lag_seconds|gc_duration_seconds)$/

const percentiles: [percentile: string, name: string][] = [
  ['50', 'nodejs_eventloop_lag_p50_seconds'],
  ['99', 'nodejs_eventloop_lag_p99_seconds'],
  ['100', 'nodejs_eventloop_lag_max_seconds']
]

let registry: Registry | undefined

/** Starts the monitors of this process: prom-client's default metrics. They run until the process ends. */
export function startProcessMetrics(): void {
  if (registry) return
  registry = new Registry()
  collectDefaultMetrics({ register: registry, eventLoopMonitoringPrecision: resolutionMs })
}

/** Reads the metrics of this process. Those of the event loop's delay begin anew with each reading. */
export async function readProcessMetrics(): Promise<Family[]> {
  const read = ((await registry?.getMetricsAsJSON()) ?? []) as MetricObjectWithValues<MetricValue<string>>[]
  const families = read
    .filter(({ name }) => !omitted.test(name))
    .map(({ name, help, type, values }) => ({
      ...{ name, help, type: type as unknown as Family['type'] },
      samples: values.map(toSample)
    }))
  return [...families, eventLoopLag(families)]
}

function toSample({ labels, value }: MetricValue<string>): Sample {
  const texts = Object.entries(labels).map(([name, label]) => [name, String(label)])
  // no delay was sampled since the last reading
  return { labels: Object.fromEntries(texts), value: Number.isNaN(value) ? 0 : value }
}

function eventLoopLag(families: readonly Family[]): Family {
  const samples = percentiles.map(([percentile, name]) => {
    const sampled = families.find((family) => family.name === name)?.samples[0]?.value ?? 0
    // the sampled value includes the interval
    return { labels: { percentile }, value: Math.max(0, sampled - resolutionMs / 1000) }
  })
  return {
    name: 'nodejs_eventloop_lag_seconds',
    help: 'How late the event loop was since this was last asked',
    type: 'gauge',
    samples
  }
}

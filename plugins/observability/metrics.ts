import { constants, PerformanceObserver, performance } from 'node:perf_hooks'
import type { RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import { createHistogram, type Family, type Sample, type Series } from '../../src/metrics.ts'
import { build } from '../../src/observability/build.ts'
import { createJobRecords, type JobRecords } from '../../src/observability/job-records.ts'
import { readProcessMetrics, startProcessMetrics } from '../../src/process-metrics.ts'

/** Reads the value of a metric. It is called when the metrics are collected, and costs nothing until then. */
type Read = () => number | Sample[]

declare module 'fastify' {
  interface FastifyInstance {
    metrics: {
      /** Adds a gauge. Labels must come from a small fixed set, and never be a tenant, a user or a text of a client. */
      gauge(name: string, help: string, read: Read): void
      /** Adds a counter, which only grows while the process lives. Its name ends in `_total`. */
      counter(name: string, help: string, read: Read): void
      /** Adds a histogram. `read` gives its samples, as those of `createHistogram`. */
      histogram(name: string, help: string, read: Read): void
      /**
       * Adds work that is done before each reading of the metrics, for values that have to be asked for. It bounds its own
       * time. When it rejects, the reading goes on, and the failure is counted.
       */
      refresh(work: () => Promise<void>): void
      /** Returns the work of a background job, with its successes and failures recorded under this name. */
      trackJob: JobRecords['track']
      /** Counts a reply with this status to bytes that could not be parsed as a request, which no hook sees. */
      unreadable(status: number): void
      /** Reads all metrics of this process. A metric whose reading throws is left out and counted. Never rejects. */
      collect(): Promise<Family[]>
    }
  }
  interface FastifyContextConfig {
    /** The series of the route's request durations, by status. */
    observed?: Series[]
    /** A reply of the route has no end of its own, so that its duration says nothing about the server. */
    endless?: true
  }
}

const requestBounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
const gcBounds = [0.001, 0.01, 0.1, 1, 2, 5]
const gcKinds = {
  [constants.NODE_PERFORMANCE_GC_MINOR]: 'minor',
  [constants.NODE_PERFORMANCE_GC_MAJOR]: 'major',
  [constants.NODE_PERFORMANCE_GC_INCREMENTAL]: 'incremental',
  [constants.NODE_PERFORMANCE_GC_WEAKCB]: 'weakcb'
}

/**
 * The metrics of this process. A request costs one look-up and two additions in an array that is allocated once.
 * Everything else is read when the internal listener is asked.
 */
export default fp(
  async (app) => {
    const families = new Map<string, { family: Omit<Family, 'samples'>; read: Read }>()

    function register(type: Family['type'], name: string, help: string, read: Read): void {
      if (!/^[a-z][a-z0-9_]*$/.test(name) || families.has(name)) throw new Error(`there can be no metric "${name}"`)
      if ((type === 'counter') !== name.endsWith('_total')) throw new Error(`only counters end in _total: "${name}"`)
      families.set(name, { family: { name, help, type }, read })
    }

    let failed = 0
    function countFailure(err: unknown, metric: string): [] {
      failed++
      app.log.error({ err, metric }, 'a metric could not be read, and is left out')
      return []
    }

    const unreadable = new Map<number, number>()
    const refreshers: (() => Promise<void>)[] = []
    const jobs = createJobRecords()
    app.decorate('metrics', {
      gauge: (name: string, help: string, read: Read) => register('gauge', name, help, read),
      counter: (name: string, help: string, read: Read) => register('counter', name, help, read),
      histogram: (name: string, help: string, read: Read) => register('histogram', name, help, read),
      refresh: (work: () => Promise<void>) => void refreshers.push(work),
      trackJob: jobs.track,
      unreadable: (status: number) => void unreadable.set(status, (unreadable.get(status) ?? 0) + 1),
      async collect() {
        await Promise.all(refreshers.map((work) => work().catch((err) => countFailure(err, 'refresh'))))
        const read = [...families.values()].flatMap(({ family, read }) => {
          try {
            const value = read()
            return [{ ...family, samples: typeof value === 'number' ? [{ value }] : value }]
          } catch (err) {
            return countFailure(err, family.name)
          }
        })
        return [...read, ...(await readProcessMetrics().catch((err) => countFailure(err, 'process')))]
      }
    })

    const requests = createHistogram(requestBounds)
    const seconds = 'Seconds from the head of a request to the end of its reply'
    register('histogram', 'http_request_duration_seconds', seconds, requests.samples)

    app.metrics.counter('aggios_metric_failures_total', 'Readings of metrics that failed', () => failed)
    app.metrics.counter('http_unreadable_total', 'What could not be read as a request, by the status it got', () =>
      [...unreadable].map(([status, value]) => ({ labels: { status: String(status) }, value }))
    )

    app.metrics.gauge('aggios_build_info', 'Which build runs here; the value is always 1', () => [
      { labels: build, value: 1 }
    ])
    app.metrics.gauge(
      'aggios_job_last_success_timestamp_seconds',
      'When a background job last succeeded in this process, 0 if it has not yet',
      jobs.lastSuccesses
    )
    app.metrics.gauge('aggios_job_interval_seconds', 'The pause between the runs of a background job', jobs.intervals)
    app.metrics.gauge('aggios_job_last_duration_seconds', 'How long its last run took', jobs.lastDurations)
    app.metrics.counter('aggios_job_failures_total', 'Runs of a background job that failed', jobs.failures)

    /** The number of series is bounded: only the server chooses statuses. */
    function seriesOf(observed: Series[], method: string, route: string, status: number): Series {
      observed[status] ??= requests.series({ method, route, status: String(status) })
      return observed[status]
    }

    app.addHook('onRoute', (route: RouteOptions) => {
      route.config ??= {}
      route.config.observed = []
    })
    // all unknown paths and methods count as one route, so that a client can't add series
    const unmatched: Series[] = []
    app.addHook('onResponse', (request, reply, done) => {
      const status = reply.statusCode
      if (request.is404) {
        requests.observe(seriesOf(unmatched, 'any', 'unmatched', status), reply.elapsedTime / 1000)
      } else {
        const { config, url = '' } = request.routeOptions
        if (config.endless && status === 200) return done()
        requests.observe(seriesOf(config.observed as Series[], request.method, url, status), reply.elapsedTime / 1000)
      }
      done()
    })

    startProcessMetrics()
    const stop = measureProcess(register)
    app.addHook('onClose', async () => stop())
  },
  { name: 'metrics', dependencies: ['config'] }
)

/**
 * Adds the metrics of the process that prom-client has not, or not completely. Returns the function that ends the
 * measuring.
 */
function measureProcess(register: (type: Family['type'], name: string, help: string, read: Read) => void): () => void {
  const collections = createHistogram(gcBounds)
  const series = Object.fromEntries(Object.entries(gcKinds).map(([id, kind]) => [id, collections.series({ kind })]))
  const observer = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      const ofKind = series[(entry as unknown as { detail: { kind: number } }).detail.kind]
      if (ofKind) collections.observe(ofKind, entry.duration / 1000)
    }
  })
  observer.observe({ entryTypes: ['gc'] })

  register('histogram', 'nodejs_gc_duration_seconds', 'Seconds that garbage collections took', collections.samples)
  register('counter', 'nodejs_eventloop_active_seconds_total', 'Seconds that the event loop was at work', () => {
    return performance.eventLoopUtilization().active / 1000
  })
  register('counter', 'nodejs_eventloop_idle_seconds_total', 'Seconds that the event loop waited for work', () => {
    return performance.eventLoopUtilization().idle / 1000
  })
  return () => observer.disconnect()
}

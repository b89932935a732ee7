import { constants, monitorEventLoopDelay, PerformanceObserver, performance } from 'node:perf_hooks'
import type { RouteOptions } from 'fastify'
import fp from 'fastify-plugin'
import { createHistogram, type Family, type Sample, type Series } from '../../src/metrics.ts'

/** Looked at when somebody asks, so that it costs nothing until then. */
type Read = () => number | Sample[]

declare module 'fastify' {
  interface FastifyInstance {
    metrics: {
      /** What is so now. Labels must come from a small fixed set: never a tenant, a user or a text of a client. */
      gauge(name: string, help: string, read: Read): void
      /** What only grows while the process lives; its name ends in `_total`. */
      counter(name: string, help: string, read: Read): void
      /** Counts what was answered, with this status, without ever becoming a request that a hook sees. */
      unreadable(status: number): void
      /** All that this process knows of itself, without a metric whose reading throws: the others tell what is wrong. */
      collect(): Family[]
    }
  }
  interface FastifyContextConfig {
    /** The series of the route, one a status. */
    observed?: Series[]
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
const delayResolutionMs = 20

/**
 * Counts what this process does. A request costs one look-up and two additions in an array that was allocated before; all
 * else is read when the internal listener is asked.
 */
export default fp(
  async (app) => {
    const families = new Map<string, { family: Omit<Family, 'samples'>; read: Read }>()

    function register(type: Family['type'], name: string, help: string, read: Read): void {
      if (!/^[a-z][a-z0-9_]*$/.test(name) || families.has(name)) throw new Error(`there can be no metric "${name}"`)
      if ((type === 'counter') !== name.endsWith('_total')) throw new Error(`only counters end in _total: "${name}"`)
      families.set(name, { family: { name, help, type }, read })
    }

    let unread = 0
    const unreadable = new Map<number, number>()
    app.decorate('metrics', {
      gauge: (name: string, help: string, read: Read) => register('gauge', name, help, read),
      counter: (name: string, help: string, read: Read) => register('counter', name, help, read),
      unreadable: (status: number) => void unreadable.set(status, (unreadable.get(status) ?? 0) + 1),
      collect: () =>
        [...families.values()].flatMap(({ family, read }) => {
          try {
            const value = read()
            return [{ ...family, samples: typeof value === 'number' ? [{ value }] : value }]
          } catch (err) {
            unread++
            app.log.error({ err, metric: family.name }, 'a metric could not be read, and is left out')
            return []
          }
        })
    })

    const requests = createHistogram(requestBounds)
    const seconds = 'Seconds from the head of a request to the end of its reply'
    register('histogram', 'http_request_duration_seconds', seconds, requests.samples)

    app.metrics.counter('aggios_metric_failures_total', 'Readings of metrics that failed', () => unread)
    app.metrics.counter('http_unreadable_total', 'What could not be read as a request, by the status it got', () =>
      [...unreadable].map(([status, value]) => ({ labels: { status: String(status) }, value }))
    )

    /** Statuses come from the server alone, so a route has as many rows as kinds of answers. */
    function rowFor(observed: Series[], method: string, route: string, status: number): Series {
      observed[status] ??= requests.series({ method, route, status: String(status) })
      return observed[status]
    }

    app.addHook('onRoute', (route: RouteOptions) => {
      route.config ??= {}
      route.config.observed = []
    })
    // whatever a client makes up as path and method is one route
    const unmatched: Series[] = []
    app.addHook('onResponse', (request, reply, done) => {
      const status = reply.statusCode
      if (request.is404) {
        requests.observe(rowFor(unmatched, 'any', 'unmatched', status), reply.elapsedTime / 1000)
      } else {
        const { config, url = '' } = request.routeOptions
        requests.observe(rowFor(config.observed as Series[], request.method, url, status), reply.elapsedTime / 1000)
      }
      done()
    })

    const stop = measureProcess(register)
    app.addHook('onClose', async () => stop())
  },
  { name: 'metrics', dependencies: ['config'] }
)

/** The process itself, under the names that dashboards for Node know. Returns what ends the measuring. */
function measureProcess(register: (type: Family['type'], name: string, help: string, read: Read) => void): () => void {
  const delay = monitorEventLoopDelay({ resolution: delayResolutionMs })
  delay.enable()
  const collections = createHistogram(gcBounds)
  const rows = Object.fromEntries(Object.entries(gcKinds).map(([id, kind]) => [id, collections.series({ kind })]))
  const observer = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) {
      const row = rows[(entry as unknown as { detail: { kind: number } }).detail.kind]
      if (row) collections.observe(row, entry.duration / 1000)
    }
  })
  observer.observe({ entryTypes: ['gc'] })

  register('histogram', 'nodejs_gc_duration_seconds', 'Seconds that garbage collections took', collections.samples)
  register('counter', 'process_cpu_user_seconds_total', 'CPU seconds in user mode', () => process.cpuUsage().user / 1e6)
  register(
    'counter',
    'process_cpu_system_seconds_total',
    'CPU seconds in the kernel',
    () => process.cpuUsage().system / 1e6
  )
  register('gauge', 'process_start_time_seconds', 'When the process started, in seconds since 1970', () => {
    return Math.round(performance.timeOrigin) / 1000
  })
  register('gauge', 'process_resident_memory_bytes', 'Resident memory', () => process.memoryUsage.rss())
  register('gauge', 'nodejs_heap_size_used_bytes', 'Heap in use', () => process.memoryUsage().heapUsed)
  register('gauge', 'nodejs_heap_size_total_bytes', 'Heap reserved', () => process.memoryUsage().heapTotal)
  register('gauge', 'nodejs_external_memory_bytes', 'Memory of buffers', () => process.memoryUsage().external)
  register('counter', 'nodejs_eventloop_active_seconds_total', 'Seconds that the event loop was at work', () => {
    return performance.eventLoopUtilization().active / 1000
  })
  register('counter', 'nodejs_eventloop_idle_seconds_total', 'Seconds that the event loop waited for work', () => {
    return performance.eventLoopUtilization().idle / 1000
  })
  register('gauge', 'nodejs_eventloop_lag_seconds', 'How late the event loop was since this was last asked', () => {
    const samples = [
      { labels: { percentile: '50' }, value: late(delay.percentile(50)) },
      { labels: { percentile: '99' }, value: late(delay.percentile(99)) },
      { labels: { percentile: '100' }, value: late(delay.max) }
    ]
    delay.reset()
    return samples
  })
  return () => {
    delay.disable()
    observer.disconnect()
  }
}

/** perf_hooks measures a timer and says how long it took in all, in nanoseconds. */
const late = (nanoseconds: number) => Math.max(0, nanoseconds / 1e9 - delayResolutionMs / 1000)

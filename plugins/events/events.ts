import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { eventsAfter, newestEvent, placeEvents } from '../../db/queries/events/events.ts'
import { createThrottle } from '../../src/throttle.ts'

/** Called when an agency has new events. `newest`: the position of the newest of them that is known. */
export type EventsListener = (tenantId: string, newest: number) => void

declare module 'fastify' {
  interface FastifyInstance {
    events: {
      /**
       * Calls `listener` for each agency with new events, whichever process has placed them, and `onLoss` when the newest events
       * are gone: another database answers, which never had them. Returns how to end that.
       */
      follow(listener: EventsListener, onLoss?: () => void): () => void
      /** Places what was committed until now, and tells the listeners of this process. Otherwise that happens twice a second. */
      run(): Promise<void>
      /** Like `run`, for callers that do not wait. */
      wake(): void
    }
  }
}

const intervalMs = 500
const topic = 'events'
/** How often a process announces at most that it has placed events, and how often requests make it place some. */
const announceMs = 50
/** Events in one transaction, and in one read. */
const batch = 1000

/**
 * Gives events their positions (db/migrations/0031_events.ts), and tells who listens in this process which agencies have
 * new ones. Every process does both: one of them places, and all read what was placed.
 *
 * That happens twice a second, and sooner after a request that may have changed something, where somebody may listen. An
 * announcement through Redis only makes the other processes read sooner.
 */
export default fp(
  async (app) => {
    const listeners = new Map<EventsListener, (() => void) | undefined>()
    const counts = { placed: 0 }
    /** Everything up to this position was told. Who listens first and reads then misses nothing. */
    let told = 0

    async function place(stopping: AbortSignal): Promise<void> {
      for (let placed = batch; placed >= batch && !stopping.aborted; ) {
        const agencies = await app.gate.query(systemScope, placeEvents, { batch })
        placed = agencies.reduce((sum, agency) => sum + agency.placed, 0)
        counts.placed += placed
        if (placed > 0) announce.run()
      }
    }

    async function tell(stopping: AbortSignal): Promise<void> {
      if (listeners.size === 0) {
        const [newest] = await app.gate.query(systemScope, newestEvent, {})
        // nobody came meanwhile, who might have read before this
        if (listeners.size === 0) told = newest?.position ?? 0
        return
      }
      while (!stopping.aborted) {
        const agencies = await app.gate.query(systemScope, eventsAfter, { reached: told, batch })
        if (agencies.length === 0) return noticeLoss()
        for (const { tenant_id, newest } of agencies) {
          told = Math.max(told, newest)
          for (const listener of listeners.keys()) listener(tenant_id, newest)
        }
      }
    }

    /** After a failover that has lost commits, positions are given again to other events. */
    async function noticeLoss(): Promise<void> {
      const [newest] = await app.gate.query(systemScope, newestEvent, {})
      if (!newest || newest.position >= told) return
      app.log.warn({ told, newest: newest.position }, 'the newest events are gone')
      told = newest.position
      for (const onLoss of listeners.values()) onLoss?.()
    }

    app.addHook('onReady', async () => {
      // what was placed before nobody here can have waited for
      const [newest] = await app.gate.query(systemScope, newestEvent, {})
      told = newest?.position ?? 0
    })
    const job = app.jobs.define({
      name: 'events',
      intervalMs,
      tasks: {
        place_events: ({ stopping }) => place(stopping),
        tell_of_events: ({ stopping }) => tell(stopping)
      }
    })

    app.decorate('events', {
      follow(listener, onLoss) {
        listeners.set(listener, onLoss)
        return () => void listeners.delete(listener)
      },
      run: async () => void (await job.run()),
      wake: job.wake
    })
    app.metrics.counter(
      'aggios_events_placed_total',
      'Events that this process has given their positions',
      () => counts.placed
    )
    const announce = createThrottle(announceMs, () => app.shared.announce(topic))
    const wakeSoon = createThrottle(announceMs, job.wake)
    app.shared.onAnnounced(topic, wakeSoon.run)
    const isShared = app.config.redisUrl !== undefined
    app.addHook('onResponse', (request, _reply, done) => {
      const { method } = request
      if ((isShared || listeners.size > 0) && method !== 'GET' && method !== 'HEAD') wakeSoon.run()
      done()
    })

    app.addHook('onClose', async () => {
      announce.stop()
      wakeSoon.stop()
    })
  },
  { name: 'events', dependencies: ['config', 'database', 'redis', 'metrics', 'jobs'] }
)

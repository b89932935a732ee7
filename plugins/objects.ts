import fp from 'fastify-plugin'
import { createBoundedQueue, QueueFull } from '../src/bounded-queue.ts'
import { overloaded } from '../src/errors.ts'
import { openStore } from '../src/objects/open.ts'
import type { ObjectStore } from '../src/objects/store.ts'
import { createShares, ShareExhausted } from '../src/shares.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Where the bytes of files lie. */
    objects: ObjectStore
    /** Takes one of the places for uploads, each of which holds some memory. Throws `overloaded`. */
    withUploadPlace<T>(tenantId: string, work: () => Promise<T>): Promise<T>
  }
}

/** Uploads at once in this process, and of one tenant; how many of each wait, and of a tenant how long. */
const maxUploads = 24
const maxWaiting = 200
const maxOfTenant = 12
const maxWaitingOfTenant = 100
const shareMs = 30_000
const tidyIntervalMs = 3_600_000

/** The object store: a bucket where one is named, else a folder. Nothing waits for it at start: what needs it says so. */
export default fp(
  async (app) => {
    const store = openStore(app.config)
    const queue = createBoundedQueue(maxUploads, maxWaiting)
    const shares = createShares({ width: maxOfTenant, depth: maxWaitingOfTenant, patienceMs: shareMs })
    app.decorate('objects', store)
    const { metrics } = app
    metrics.gauge('aggios_uploads_running', 'Uploads under way', () => queue.stats().running)
    metrics.gauge('aggios_uploads_waiting', 'Uploads that wait for a place', () => queue.stats().waiting)
    app.decorate('withUploadPlace', async <T>(tenantId: string, work: () => Promise<T>) => {
      try {
        return await shares.run(tenantId, () => queue.run(work, tenantId))
      } catch (err) {
        if (err instanceof QueueFull || err instanceof ShareExhausted)
          throw overloaded({ headers: { 'retry-after': '5' }, cause: err })
        throw err
      }
    })
    const dropForgotten = () =>
      store.dropForgotten().catch((err) => app.log.warn({ err }, 'parts of given up uploads could not be removed'))
    const timer = setInterval(dropForgotten, tidyIntervalMs)
    timer.unref()
    app.addHook('onReady', async () => {
      dropForgotten()
      store.check().catch((err) => app.log.error({ err }, 'the object store can not be used'))
    })
    app.addHook('onClose', async () => {
      clearInterval(timer)
      store.close()
    })
  },
  { name: 'objects', dependencies: ['config', 'metrics'] }
)

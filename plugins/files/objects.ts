import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { openStore } from '../../src/files/store/configured-store.ts'
import type { ObjectStore } from '../../src/files/store/object-store.ts'
import { createUploadSlots, type UploadOwner } from '../../src/files/upload-slots.ts'
import { createPoller } from '../../src/poller.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Where the bytes of files lie. */
    objects: ObjectStore
    /** Takes one of the places for uploads, each of which holds some memory. Throws `overloaded`. */
    withUploadPlace<T>(request: FastifyRequest, owner: UploadOwner, work: () => Promise<T>): Promise<T>
  }
  interface FastifyRequest {
    /** Given when an upload loses its place: what reads the body goes no further. */
    uploadEnd: AbortSignal | undefined
  }
}

/** Uploads at once in this process, and of one person or tenant; how many of each wait, and how long. */
export const maxUploads = 24
export const maxWaiting = 200
export const maxOfTenant = 12
export const maxWaitingOfTenant = 100
export const shareMs = 10_000
export const placeMs = 10_000
const stalePartsIntervalMs = 3_600_000

/** The object store: a bucket where one is named, else a folder. Nothing waits for it at start: what needs it says so. */
export default fp(
  async (app) => {
    const store = openStore(app.config)
    const places = createUploadSlots(
      { concurrency: maxOfTenant, depth: maxWaitingOfTenant, timeoutMs: shareMs },
      { concurrency: maxUploads, depth: maxWaiting, timeoutMs: placeMs }
    )
    app.decorate('objects', store)
    const { metrics } = app
    metrics.gauge('aggios_uploads_running', 'Uploads under way', () => places.stats().running)
    metrics.gauge('aggios_uploads_waiting', 'Uploads that wait for a place', () => places.stats().waiting)
    metrics.counter(
      'aggios_uploads_yielded_total',
      'Slow uploads whose place somebody else waited for',
      () => places.stats().preempted
    )
    app.decorateRequest('uploadEnd', undefined)
    app.decorate('withUploadPlace', (request: FastifyRequest, owner: UploadOwner, work) =>
      places.run(request.raw, owner, (signal) => {
        request.uploadEnd = signal
        return work()
      })
    )
    const poller = createPoller({
      intervalMs: stalePartsIntervalMs,
      work: store.dropStaleParts,
      onError: (err) => app.log.warn({ err }, 'parts of given up uploads could not be removed')
    })
    app.addHook('onReady', async () => {
      poller.start()
      poller.wake()
      store.check().catch((err) => app.log.error({ err }, 'the object store can not be used'))
    })
    app.addHook('onClose', async () => {
      await poller.stop()
      store.close()
    })
  },
  { name: 'objects', dependencies: ['config', 'metrics'] }
)

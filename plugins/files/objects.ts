import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { openStore } from '../../src/files/store/configured-store.ts'
import type { ObjectStore } from '../../src/files/store/object-store.ts'
import { createUploadSlots, type UploadOwner } from '../../src/files/upload-slots.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** The store of the files' bytes. */
    objects: ObjectStore
    /** Runs `work` in one of the slots for uploads, which bound the memory of all uploads. Throws `overloaded`. */
    withUploadSlot<T>(request: FastifyRequest, owner: UploadOwner, work: () => Promise<T>): Promise<T>
  }
  interface FastifyRequest {
    /** Aborted when the upload loses its slot, so that its body is read no further. Undefined outside of uploads. */
    uploadSignal: AbortSignal | undefined
  }
}

/** The concurrent uploads of this process, the uploads that may wait, and their timeout. */
export const maxUploads = 24
export const maxWaiting = 200
export const slotTimeoutMs = 10_000
/** The same for one owner: a person or a tenant. */
export const maxPerOwner = 12
export const maxWaitingPerOwner = 100
export const ownerTimeoutMs = 10_000
const stalePartsIntervalMs = 3_600_000

/**
 * The object store: a bucket when one is configured, and a folder otherwise. The start does not wait for it. A request
 * that needs the store while it is away is refused.
 */
export default fp(
  async (app) => {
    const store = await openStore(app.config)
    const slots = createUploadSlots(
      { concurrency: maxPerOwner, depth: maxWaitingPerOwner, timeoutMs: ownerTimeoutMs },
      { concurrency: maxUploads, depth: maxWaiting, timeoutMs: slotTimeoutMs }
    )
    app.secrets.follow(['s3AccessKey', 's3SecretKey'], async ({ s3AccessKey = '', s3SecretKey = '' }) => {
      const trial = await openStore({ ...app.config, s3AccessKey, s3SecretKey })
      await trial.check().finally(trial.close)
      return () => store.renew?.({ access_key: s3AccessKey, secret_key: s3SecretKey })
    })
    app.decorate('objects', store)
    const { metrics } = app
    metrics.gauge('aggios_uploads_running', 'Uploads under way', () => slots.stats().running)
    metrics.gauge('aggios_uploads_waiting', 'Uploads that wait for a place', () => slots.stats().waiting)
    metrics.counter(
      'aggios_uploads_yielded_total',
      'Slow uploads whose place somebody else waited for',
      () => slots.stats().preempted
    )
    app.decorateRequest('uploadSignal', undefined)
    app.decorate('withUploadSlot', (request: FastifyRequest, owner: UploadOwner, work) =>
      slots.run(request.raw, owner, (signal) => {
        request.uploadSignal = signal
        return work()
      })
    )
    app.addHook('onReady', async () => {
      store.check().catch((err) => app.log.error({ err }, 'the object store can not be used'))
    })
    app.addHook('onClose', async () => store.close())
    app.jobs.define({
      name: 'stale_parts',
      intervalMs: stalePartsIntervalMs,
      atStart: true,
      tasks: { stale_parts: () => store.dropStaleParts() }
    })
  },
  { name: 'objects', dependencies: ['config', 'metrics', 'jobs'] }
)

import { join } from 'node:path'
import fp from 'fastify-plugin'
import { QueueFull } from '../src/bounded-queue.ts'
import { overloaded } from '../src/errors.ts'
import { createFairQueue } from '../src/fair-queue.ts'
import { createDiskStore } from '../src/objects/disk.ts'
import { createS3Store } from '../src/objects/s3.ts'
import type { ObjectStore } from '../src/objects/store.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Where the bytes of files lie. */
    objects: ObjectStore
    /** Bytes that a tenant may keep. */
    storageQuota(tenantId: string): number | Promise<number>
    /** Takes one of the places for uploads, each of which holds some memory. Throws `overloaded`. */
    withUploadPlace<T>(tenantId: string, work: () => Promise<T>): Promise<T>
    uploads: { stats(): { running: number; waiting: number } }
  }
}

const tidyIntervalMs = 3_600_000
const places = { width: 24, share: 12, depth: 200 }

/** The object store: a bucket where one is named, else a folder. Nothing waits for it at start: what needs it says so. */
export default fp(
  async (app) => {
    const { config } = app
    const store =
      config.s3Endpoint === undefined
        ? createDiskStore(join(config.dataDir, 'files'))
        : createS3Store({
            endpoint: config.s3Endpoint,
            public_endpoint: config.s3PublicEndpoint,
            region: config.s3Region ?? 'us-east-1',
            bucket: config.s3Bucket as string,
            access_key: config.s3AccessKey as string,
            secret_key: config.s3SecretKey as string
          })
    const queue = createFairQueue(places)
    app.decorate('objects', store)
    app.decorate('storageQuota', () => config.storageQuota)
    app.decorate('uploads', { stats: queue.stats })
    app.decorate('withUploadPlace', async <T>(tenantId: string, work: () => Promise<T>) => {
      try {
        return await queue.run(tenantId, work)
      } catch (err) {
        if (err instanceof QueueFull) throw overloaded({ headers: { 'retry-after': '5' }, cause: err })
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
  { name: 'objects', dependencies: ['config'] }
)

import { join } from 'node:path'
import { createSandbox, type Limits } from '../subprocesses/sandbox.ts'
import type { ImageFault } from './image-decoding.ts'

/** A job of a decoder: a whole image, or the first bytes of a file. */
export type DecoderJob = { image: Uint8Array } | { head: Uint8Array }
/** The result: for an image the re-encoded image or its fault, for a file its media type or undefined. */
export type DecoderResult = Buffer | ImageFault | string | undefined

/**
 * The niceness of the subprocesses, of 0 to 19. Images may wait when other processes want the core. Types have normal
 * priority: a detection takes a fraction of a millisecond, and an upload waits for it.
 */
export const niceness = { images: 10, types: 0 }

/**
 * The worst image within the limit of pixels, an AVIF of 25 megapixels, takes 490 MiB and 2 s. Most images take 5 % of
 * that.
 */
export const imageLimits: Limits = { memory: 512 * 2 ** 20, cpuMs: 10_000, wallMs: 60_000, jobs: 200 }
export const typeLimits: Limits = { memory: 256 * 2 ** 20, cpuMs: 2000, wallMs: 30_000, jobs: 100_000 }

/** How many jobs of each kind may wait. */
export const depths = { images: 32, types: 400 }

type Options = { log: { warn(details: object, message: string): void }; program?: string }

export type Decoders = ReturnType<typeof createDecoders>

/**
 * Creates the sandboxes for untrusted bytes: one for images, and one for file types, so that a slow image never delays
 * an upload.
 */
export function createDecoders({ log, program = join(import.meta.dirname, 'decoder-process.ts') }: Options) {
  const images = createSandbox<DecoderJob, DecoderResult>({
    program,
    args: ['images'],
    limits: imageLimits,
    depth: depths.images,
    log
  })
  const types = createSandbox<DecoderJob, DecoderResult>({
    program,
    args: ['types'],
    limits: typeLimits,
    depth: depths.types,
    log
  })
  return {
    decode: (image: Uint8Array, fairnessKey: string) =>
      images.run({ image }, fairnessKey) as Promise<Buffer | ImageFault>,
    findType: (head: Uint8Array, fairnessKey: string) =>
      types.run({ head }, fairnessKey) as Promise<string | undefined>,
    close(): void {
      images.close()
      types.close()
    },
    stats: () => ({ images: images.stats(), types: types.stats() })
  }
}

import { join } from 'node:path'
import { createSandbox, type Limits } from '../subprocesses/sandbox.ts'
import type { ImageFault } from './image-decoding.ts'

/** What a decoder is given: a whole image, or the first bytes of a file. */
export type DecoderJob = { image: Uint8Array } | { head: Uint8Array }
/** A re-encoded image or why there is none; a media type or nothing. */
export type DecoderResult = Buffer | ImageFault | string | undefined

/**
 * Of 0 to 19. An image may wait where a core is wanted by others too; an upload waits for the type of its file, which takes a
 * fraction of a millisecond.
 */
export const niceness = { images: 10, types: 0 }

/** The worst image within the limits of pixels, an AVIF of 25 megapixels, takes 490 MiB and 2 s; most take 5 % of that. */
export const imageLimits: Limits = { memory: 512 * 2 ** 20, cpuMs: 10_000, wallMs: 60_000, jobs: 200 }
export const typeLimits: Limits = { memory: 256 * 2 ** 20, cpuMs: 2000, wallMs: 30_000, jobs: 100_000 }

/** How many images, and how many beginnings of files, may wait. */
export const depths = { images: 32, types: 400 }

type Options = { log: { warn(details: object, message: string): void }; program?: string }

export type Decoders = ReturnType<typeof createDecoders>

/** The processes that read bytes of strangers: one for images, and one for the types of files, which no image may hold up. */
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
    decode: (image: Uint8Array, party: string) => images.run({ image }, party) as Promise<Buffer | ImageFault>,
    findType: (head: Uint8Array, party: string) => types.run({ head }, party) as Promise<string | undefined>,
    close(): void {
      images.close()
      types.close()
    },
    stats: () => ({ images: images.stats(), types: types.stats() })
  }
}

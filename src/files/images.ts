import { invalidMembers } from '../http/field-errors.ts'
import { type Problem, unsupportedMediaType } from '../http/problems.ts'
import { JobRefused } from '../subprocesses/sandbox.ts'
import { type ImageFault, maxPixels, maxSide } from './image-decoding.ts'

const formats = ['jpeg', 'png', 'webp', 'gif', 'avif'] as const

/** The maximum size of an uploaded image. */
export const maxImageBytes = 10 * 1024 * 1024
/** The media type of stored images. */
export const imageType = 'image/webp'

/** Decodes and re-encodes an image. The product does this in a subprocess. */
export type Decode = (content: Buffer) => Promise<Buffer | ImageFault>

/**
 * Re-encodes an uploaded image as a small WebP. Throws for bytes that are no image, and for an image that is too large.
 * Only bytes that begin like one of the accepted formats are passed to a library.
 */
export async function reencodeImage(content: Buffer, decode: Decode): Promise<Buffer> {
  if (imageFormat(content) === undefined) throw refusal('unreadable')
  try {
    const image = await decode(content)
    if (typeof image === 'string') throw refusal(image)
    return image
  } catch (err) {
    if (err instanceof JobRefused) throw refusal('memory', err)
    throw err
  }
}

/** Detects the format by the first bytes. Returns undefined for a format that is not accepted. */
export function imageFormat(content: Buffer): (typeof formats)[number] | undefined {
  const text = (start: number, end: number) => content.toString('latin1', start, end)
  if (text(0, 3) === '\xff\xd8\xff') return 'jpeg'
  if (text(0, 8) === '\x89PNG\r\n\x1a\n') return 'png'
  if (text(0, 4) === 'RIFF' && text(8, 12) === 'WEBP') return 'webp'
  if (text(0, 6) === 'GIF87a' || text(0, 6) === 'GIF89a') return 'gif'
  if (text(4, 8) === 'ftyp' && content.length >= 16) {
    // the box holds the brand, a version, and the compatible brands
    const brands = text(8, Math.min(content.readUInt32BE(0), 256)).match(/.{4}/gs) ?? []
    if (brands.some((brand) => brand === 'avif' || brand === 'avis')) return 'avif'
  }
  return undefined
}

function refusal(fault: ImageFault, cause?: unknown): Problem {
  if (fault === 'unreadable')
    return unsupportedMediaType({ detail: `an image must be one of ${formats.join(', ')}, and whole`, cause })
  const message = {
    pixels: `must have at most ${maxPixels / 1_000_000} megapixels`,
    side: `must have at most ${maxSide} pixels each way`,
    memory: 'takes too much memory or time to decode: send a smaller one'
  }[fault]
  return invalidMembers([{ path: '/body/file', message }], cause)
}

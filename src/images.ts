import sharp from 'sharp'
import { unsupportedMediaType, validationFailed } from './errors.ts'

/** The longest side of what is kept. */
const keptSide = 512
/** 50 megapixels: what a good camera makes. Decided by what the header declares, before anything is decoded. */
const maxPixels = 50_000_000
const formats = ['jpeg', 'png', 'webp', 'gif', 'heif']

/** What an image may have before it is re-encoded. */
export const maxImageBytes = 10 * 1024 * 1024
export const imageType = 'image/webp'

// one image at a time on one thread: they are few, and everything else runs here too
sharp.concurrency(1)
sharp.cache(false)

/**
 * Makes a small WebP of an image: upright, without metadata, and with nothing of the original bytes in it. Throws for what is no
 * image or too large a one.
 */
export async function reencodeImage(content: Buffer): Promise<Buffer> {
  const image = sharp(content, { limitInputPixels: maxPixels, failOn: 'error', pages: 1 })
  const facts = await image.metadata().catch(() => undefined)
  if (!facts || !formats.includes(facts.format)) {
    throw unsupportedMediaType({ detail: `an image must be one of ${formats.join(', ')}` })
  }
  if (facts.width * facts.height > maxPixels) throw tooManyPixels()
  try {
    return await image
      .rotate()
      .resize({ width: keptSide, height: keptSide, fit: 'inside', withoutEnlargement: true })
      .webp({ quality: 85 })
      .timeout({ seconds: 10 })
      .toBuffer()
  } catch (err) {
    if (/pixel limit/i.test((err as Error).message)) throw tooManyPixels()
    throw unsupportedMediaType({ detail: 'the image can not be decoded', cause: err })
  }
}

function tooManyPixels() {
  const message = `must have at most ${maxPixels / 1_000_000} megapixels`
  return validationFailed({ detail: `body/file ${message}`, errors: [{ path: '/body/file', message }] })
}

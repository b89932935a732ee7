import { Problem, unsupportedMediaType, validationFailed } from './errors.ts'

/** The longest side of what is kept. */
const keptSide = 512
/** 50 megapixels: what a good camera makes. Decided by what the header declares, before anything is decoded. */
const maxPixels = 50_000_000
const formats = ['jpeg', 'png', 'webp', 'gif', 'heif']

/** What an image may have before it is re-encoded. */
export const maxImageBytes = 10 * 1024 * 1024
export const imageType = 'image/webp'

let loading: Promise<typeof import('sharp').default> | undefined

/** Loaded with the first image: most processes never meet one, and the library brings threads and memory of its own. */
function loadSharp() {
  loading ??= import('sharp').then(({ default: sharp }) => {
    // one image at a time on one thread: they are few, and everything else runs here too
    sharp.concurrency(1)
    sharp.cache(false)
    return sharp
  })
  return loading
}

/**
 * Makes a small WebP of an image: upright, without metadata, and with nothing of the original bytes in it. Throws for what is no
 * image or too large a one.
 */
export async function reencodeImage(content: Buffer): Promise<Buffer> {
  const sharp = await loadSharp()
  try {
    const image = sharp(content, { limitInputPixels: maxPixels, failOn: 'error', pages: 1 })
    const { format, width, height } = await image.metadata()
    if (!formats.includes(format)) throw notAnImage()
    if (width * height > maxPixels) throw tooManyPixels()
    return await image
      .rotate()
      .resize({ width: keptSide, height: keptSide, fit: 'inside', withoutEnlargement: true })
      .webp({ quality: 85 })
      .timeout({ seconds: 10 })
      .toBuffer()
  } catch (err) {
    if (err instanceof Problem) throw err
    if (/pixel limit/i.test((err as Error).message)) throw tooManyPixels()
    throw notAnImage(err)
  }
}

function notAnImage(cause?: unknown) {
  return unsupportedMediaType({ detail: `an image must be one of ${formats.join(', ')}, and whole`, cause })
}

function tooManyPixels() {
  const message = `must have at most ${maxPixels / 1_000_000} megapixels`
  return validationFailed({ detail: `body/file ${message}`, errors: [{ path: '/body/file', message }] })
}

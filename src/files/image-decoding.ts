/** The longest side of the stored image in pixels. */
const storedSide = 512
/** The pixels of a good camera's image. */
export const maxPixels = 40_000_000
/**
 * The limit of each side: some memory of the decoders depends on one side alone, so the limit of pixels is not enough.
 */
export const maxSide = 10_000

/** The names in libvips of the loaders of the accepted formats. */
const loaders = ['Jpeg', 'Png', 'Webp', 'Nsgif', 'Heif'].map((format) => `VipsForeignLoad${format}`)

/** The reason why an image is refused. */
export type ImageFault = 'unreadable' | 'pixels' | 'side' | 'memory'

let loading: Promise<typeof import('sharp').default> | undefined

function loadSharp() {
  loading ??= import('sharp').then(({ default: sharp }) => {
    // one thread: the other cores are left to the processes that serve requests
    sharp.concurrency(1)
    sharp.cache(false)
    // block the many other formats of the library, some of which are languages: SVG, PDF
    sharp.block({ operation: ['VipsForeignLoad'] })
    sharp.unblock({ operation: loaders })
    return sharp
  })
  return loading
}

/**
 * Decodes an image and encodes it as a small WebP: upright, without metadata, and without any of the original bytes.
 * Only the first frame of an animation is read. The limits of size are checked by the header, before anything is
 * decoded.
 *
 * Runs in a subprocess, since the decoders read untrusted bytes.
 */
export async function decodeImage(content: Uint8Array): Promise<Buffer | ImageFault> {
  const sharp = await loadSharp()
  try {
    const image = sharp(content, { limitInputPixels: maxPixels, failOn: 'error', pages: 1 })
    const { width, height } = await image.metadata()
    if (width > maxSide || height > maxSide) return 'side'
    if (width * height > maxPixels) return 'pixels'
    return await image
      .rotate()
      .resize({ width: storedSide, height: storedSide, fit: 'inside', withoutEnlargement: true })
      .webp({ quality: 85 })
      .toBuffer()
  } catch (err) {
    const { message } = err as Error
    if (/pixel limit/i.test(message)) return 'pixels'
    return /memory/i.test(message) ? 'memory' : 'unreadable'
  }
}

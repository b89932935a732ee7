/** The longest side of what is kept. */
const keptSide = 512
/** What a good camera makes. */
export const maxPixels = 40_000_000
/** Some of what is needed to decode depends on one side alone, so the product is not enough. */
export const maxSide = 10_000

/** What libvips calls the loaders of the formats that are accepted. */
const loaders = ['Jpeg', 'Png', 'Webp', 'Nsgif', 'Heif'].map((format) => `VipsForeignLoad${format}`)

/** What an image is refused for. */
export type ImageFault = 'unreadable' | 'pixels' | 'side' | 'memory'

let loading: Promise<typeof import('sharp').default> | undefined

function loadSharp() {
  loading ??= import('sharp').then(({ default: sharp }) => {
    // one image at a time on one thread: the cores belong to what serves
    sharp.concurrency(1)
    sharp.cache(false)
    // the library reads many more formats, some of which are languages: SVG, PDF
    sharp.block({ operation: ['VipsForeignLoad'] })
    sharp.unblock({ operation: loaders })
    return sharp
  })
  return loading
}

/**
 * Makes a small WebP of an image: upright, without metadata, and with nothing of the original bytes in it. Sizes are decided by what
 * the header declares, before anything is decoded; of moving pictures only the first is read. Meant for a process of its own.
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
      .resize({ width: keptSide, height: keptSide, fit: 'inside', withoutEnlargement: true })
      .webp({ quality: 85 })
      .toBuffer()
  } catch (err) {
    const { message } = err as Error
    if (/pixel limit/i.test(message)) return 'pixels'
    return /memory/i.test(message) ? 'memory' : 'unreadable'
  }
}

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { parse } from 'yaml'
import { CannotLook, type Check, type Examination } from './examination.ts'
import { findHoles } from './known-holes.ts'

/*
 * The machine on which the product runs, and the images that its compose files name.
 */

export const machineChecks: readonly Check[] = [
  { name: 'disk', run: checkDisk },
  { name: 'file descriptors', run: checkDescriptors },
  { name: 'images', atStart: false, run: checkImages }
]

async function checkDisk(exam: Examination): Promise<void> {
  let folder = resolve(exam.config.dataDir)
  while (!existsSync(folder)) folder = dirname(folder)
  const { bavail, blocks, bsize } = await statfs(folder)
  const share = blocks === 0 ? 1 : bavail / blocks
  const seen = `${((bavail * bsize) / 2 ** 30).toFixed(1)} GiB are free on the disk of ${folder}, ${(share * 100).toFixed(1)} %`
  if (share < exam.limits.diskFullShare) exam.found('disk_full', seen)
  else if (share < exam.limits.diskNearlyFullShare) exam.found('disk_nearly_full', seen)
}

function checkDescriptors(exam: Examination): void {
  const file = '/proc/self/limits'
  if (!existsSync(file)) throw new CannotLook('this system has no /proc')
  const [, soft = ''] = /^Max open files\s+(\S+)/m.exec(readFileSync(file, 'utf8')) ?? []
  if (soft !== 'unlimited' && Number(soft) < exam.limits.descriptors) {
    exam.found(
      'few_file_descriptors',
      `this process may open ${soft} files, and a server needs ${exam.limits.descriptors}`
    )
  }
}

/** The products of images, by the name of the image without its registry. */
const products: Record<string, string> = {
  traefik: 'Traefik',
  postgres: 'PostgreSQL',
  redis: 'Redis',
  'minio/minio': 'MinIO',
  'chrislusf/seaweedfs': 'SeaweedFS'
}

/** Reads the compose files of the folder. A tag such as `16-bookworm` moves, so its version is seen in the service only. */
function checkImages(exam: Examination): void {
  const files = readdirSync(exam.folder).filter((name) => /^compose(\.[\w-]+)?\.ya?ml$/.test(name))
  if (files.length === 0) throw new CannotLook('there is no compose.yaml in this folder')
  for (const file of files) {
    const text = readFileSync(join(exam.folder, file), 'utf8')
    for (const image of imagesOf(parse(text, { customTags: overrides }))) {
      const [, name = '', tag = ''] = /^(?:[^/:@.]+\.[^/:@]*\/)?([^:@]+)(?::([^@]+))?/.exec(image) ?? []
      const product = products[name]
      const version =
        /^v?(\d+\.\d+\.\d+|RELEASE\.\S+)/.exec(tag)?.[1] ??
        (product === 'PostgreSQL' ? /^\d+\.\d+/.exec(tag)?.[0] : undefined)
      if (product === undefined || version === undefined) continue
      const { open } = findHoles(exam.holes, product, version.replace('RELEASE.', ''))
      if (open) exam.found('image_outdated', `${file}: ${open}`)
    }
  }
}

/** The tags of compose files that replace a value of the file before. */
const overrides = ['!override', '!reset'].flatMap((tag) => [
  { tag, collection: 'seq' as const },
  { tag, collection: 'map' as const },
  { tag, resolve: (value: string) => value }
])

function imagesOf(compose: unknown): string[] {
  const { services } = (compose ?? {}) as { services?: Record<string, { image?: unknown } | null> }
  return Object.values(services ?? {}).flatMap((service) => (typeof service?.image === 'string' ? [service.image] : []))
}

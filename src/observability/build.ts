import { readFileSync } from 'node:fs'

const manifest = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string
  /** npm's field for the revision of a package. The Dockerfile sets it. */
  gitHead?: string
}

/** Which build of the product runs here, and on which Node. */
export const build = { version: manifest.version, revision: manifest.gitHead ?? 'unknown', node: process.version }

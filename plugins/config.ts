import fp from 'fastify-plugin'
import type { Config } from '../src/config.ts'
import { type Cursors, createCursors } from '../src/cursors.ts'
import { createFileLinks, type FileLinks } from '../src/file-links.ts'
import { createKeyRing } from '../src/keys.ts'
import { createOneTimeTokens, type OneTimeTokens } from '../src/one-time-tokens.ts'

declare module 'fastify' {
  interface FastifyInstance {
    config: Config
    cursors: Cursors
    oneTimeTokens: OneTimeTokens
    fileLinks: FileLinks
  }
}

/** What the process runs with. */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    app.decorate('config', config)
    const keys = createKeyRing(config.jwtSecret, 'access token')
    app.decorate('cursors', createCursors(keys))
    app.decorate('oneTimeTokens', createOneTimeTokens(keys))
    app.decorate('fileLinks', createFileLinks(keys))
  },
  { name: 'config' }
)

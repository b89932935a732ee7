import fp from 'fastify-plugin'
import { createOneTimeTokens, type OneTimeTokens } from '../../src/auth/one-time-tokens.ts'
import type { Config } from '../../src/config/config.ts'
import { createFileLinks, type FileLinks } from '../../src/files/file-links.ts'
import { type Cursors, createCursors } from '../../src/http/cursors.ts'
import { createKeyRing } from '../../src/keys.ts'

declare module 'fastify' {
  interface FastifyInstance {
    config: Config
    cursors: Cursors
    oneTimeTokens: OneTimeTokens
    fileLinks: FileLinks
  }
}

/** The configuration, and the signers of cursors, one-time tokens and file links, whose keys come from it. */
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

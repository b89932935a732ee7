import fp from 'fastify-plugin'
import type { Config } from '../src/config.ts'
import { type Cursors, createCursors } from '../src/cursors.ts'
import { createKeyRing } from '../src/keys.ts'

declare module 'fastify' {
  interface FastifyInstance {
    config: Config
    cursors: Cursors
  }
}

/** What the process runs with. */
export default fp<{ config: Config }>(
  async (app, { config }) => {
    app.decorate('config', config)
    app.decorate('cursors', createCursors(createKeyRing(config.jwtSecret, 'access token')))
  },
  { name: 'config' }
)

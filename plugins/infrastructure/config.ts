import fp from 'fastify-plugin'
import { createOneTimeTokens, type OneTimeTokens } from '../../src/auth/one-time-tokens.ts'
import type { Config } from '../../src/config/config.ts'
import { createFileLinks, type FileLinks } from '../../src/files/file-links.ts'
import { type Cursors, createCursors } from '../../src/http/cursors.ts'
import { createKeyRing, type KeyRing } from '../../src/keys.ts'
import { createLiveSecrets, type LiveSecrets } from '../../src/secrets/live-secrets.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Its secrets are those in force. Whoever keeps something that is made of one follows it by `secrets`. */
    config: Config
    secrets: LiveSecrets
    cursors: Cursors
    oneTimeTokens: OneTimeTokens
    fileLinks: FileLinks
  }
}

/** The configuration, and the signers of cursors, one-time tokens and file links, whose keys come from it. */
export default fp<{ config: Config }>(
  async (app, { config: given }) => {
    const config = { ...given }
    const secrets = createLiveSecrets(config, app.log)
    const signed = <Signer extends object>(make: (keys: KeyRing) => Signer) =>
      secrets.following('jwtSecret', (values) => make(createKeyRing(values, 'access token')))
    app.decorate('config', config)
    app.decorate('secrets', secrets)
    app.decorate('cursors', signed(createCursors))
    app.decorate('oneTimeTokens', signed(createOneTimeTokens))
    app.decorate('fileLinks', signed(createFileLinks))
    app.addHook('onClose', async () => secrets.close())
  },
  { name: 'config' }
)

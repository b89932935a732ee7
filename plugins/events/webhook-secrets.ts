import fp from 'fastify-plugin'
import { requireKeysInUse } from '../../db/queries/keys-in-use.ts'
import { webhookKeysInUse } from '../../db/queries/webhooks/secrets.ts'
import { createWebhookSecrets } from '../../src/events/webhook-secrets.ts'

declare module 'fastify' {
  interface FastifyInstance {
    webhookSecrets: ReturnType<typeof createWebhookSecrets>
  }
}

/** Encrypts the signing secrets of webhooks. Refuses to start when a stored one needs a key that is not configured. */
export default fp(
  async (app) => {
    const requireKeys = (peppers: readonly string[]) =>
      requireKeysInUse(app.gate, webhookKeysInUse, createWebhookSecrets(peppers).has, 'secrets of webhooks')
    await requireKeys(app.config.passwordPepper)
    app.secrets.follow(['passwordPepper'], async ({ passwordPepper }) => {
      await requireKeys(passwordPepper)
      return () => {}
    })
    app.decorate('webhookSecrets', app.secrets.following('passwordPepper', createWebhookSecrets))
  },
  { name: 'webhook-secrets', dependencies: ['config', 'database'] }
)

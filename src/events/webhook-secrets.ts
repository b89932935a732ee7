import { createStoredSecrets, type SealedSecret } from '../auth/stored-secrets.ts'

/** The stored secrets of an endpoint. The previous one is null when it is no longer good. */
export type StoredWebhookSecrets = {
  endpoint_id: string
  secret: Buffer
  key_id: string
  previous_secret: Buffer | null
  previous_key_id: string | null
}

/** Encrypts the signing secrets of webhooks, each for its endpoint. */
export function createWebhookSecrets(peppers: readonly string[]) {
  const secrets = createStoredSecrets(peppers, 'webhook')
  const seal = (id: string, secret: string): SealedSecret => secrets.seal(id, Buffer.from(secret))

  /** The secrets that sign, the newest first. Throws when one needs a key that is not configured. */
  function open({ endpoint_id, previous_secret, previous_key_id, ...newest }: StoredWebhookSecrets): string[] {
    const sealed = [newest]
    if (previous_secret && previous_key_id) sealed.push({ secret: previous_secret, key_id: previous_key_id })
    return sealed.map((each) => {
      const secret = secrets.open(endpoint_id, each)
      if (!secret) throw new Error(`the secret of the webhook ${endpoint_id} can not be read`)
      return secret.toString()
    })
  }

  return {
    has: secrets.has,
    seal,
    open,
    /** The secrets encrypted with the first key, or undefined when they are. */
    reseal(row: StoredWebhookSecrets) {
      if ([row.key_id, row.previous_key_id ?? secrets.first].every((key) => key === secrets.first)) return undefined
      const [newest = '', previous] = open(row)
      const sealed = previous === undefined ? undefined : seal(row.endpoint_id, previous)
      return {
        ...seal(row.endpoint_id, newest),
        previous_secret: sealed?.secret ?? null,
        previous_key_id: sealed?.key_id ?? null
      }
    }
  }
}

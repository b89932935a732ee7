import { createHmac, randomBytes } from 'node:crypto'

/*
 * Standard Webhooks, https://www.standardwebhooks.com: secrets, and the headers of a message.
 */

const prefix = 'whsec_'
const secretBytes = 32

/** Makes the secret of an endpoint: random bytes, in the form in which its owner gets them. */
export function createWebhookSecret(): string {
  return prefix + randomBytes(secretBytes).toString('base64')
}

/**
 * The headers of a message that is sent at `at`. There is a signature by each of the secrets, in their order, so that a receiver
 * who knows one of them can verify the message.
 *
 * `id` is that of the event, and the same at each attempt, so that a receiver can recognise a repetition.
 */
export function signMessage(
  { id, body, at }: { id: string; body: string; at: Date },
  secrets: readonly string[]
): Record<string, string> {
  const seconds = Math.floor(at.getTime() / 1000)
  const signatures = secrets.map((secret) => {
    const key = Buffer.from(secret.slice(prefix.length), 'base64')
    return `v1,${createHmac('sha256', key).update(`${id}.${seconds}.${body}`).digest('base64')}`
  })
  return { 'webhook-id': id, 'webhook-timestamp': String(seconds), 'webhook-signature': signatures.join(' ') }
}

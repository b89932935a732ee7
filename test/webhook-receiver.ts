import { createServer, type IncomingHttpHeaders, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Webhook } from 'standardwebhooks'
import { allRows, type Owner, post, type Tenant, type TestApp } from './harness.ts'

/*
 * A receiver of webhooks, written with the public library of Standard Webhooks.
 */

export type Message = {
  path: string
  headers: IncomingHttpHeaders
  text: string
  body: { type: string; timestamp: string; data: Record<string, unknown> & { id: string; position: number | null } }
}

export type Receiver = {
  url: string
  /** What has arrived, in order. */
  messages: Message[]
  /** Answers in another way than by 200. Without a call of it a request gets 200. */
  script: { answer?: ((message: Message, response: ServerResponse) => void) | undefined }
}

/** Starts a receiver on this machine. */
export async function startReceiver(t: Owner): Promise<Receiver> {
  const messages: Message[] = []
  const script: Receiver['script'] = {}
  const server = createServer((request, response) => {
    const chunks: Buffer[] = []
    response.on('error', () => {})
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      const text = Buffer.concat(chunks).toString()
      const message = { path: request.url ?? '', headers: request.headers, text, body: JSON.parse(text) }
      messages.push(message)
      if (script.answer) script.answer(message, response)
      else response.end('thank you')
    })
  })
  await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening))
  t.teardown(() => {
    server.closeAllConnections()
    return new Promise<void>((closed) => server.close(() => closed()))
  })
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, messages, script }
}

/** Verifies a message by the public library. Throws for one that the secret has not signed. */
export function verify(secret: string, { text, headers }: Message): Message['body'] {
  return new Webhook(secret).verify(text, headers as Record<string, string>) as Message['body']
}

export type CreatedWebhook = { id: string; secret: string } & Record<string, unknown>

export async function createWebhook(tenant: Tenant, url: string, more: object = {}): Promise<CreatedWebhook> {
  const reply = await tenant.send(post('/webhooks', { url, ...more }))
  if (reply.statusCode !== 201) throw new Error(reply.body)
  return reply.json()
}

/** Places what has happened, and sends everything that is due. */
export async function deliver(app: TestApp): Promise<void> {
  await app.events.run()
  await app.webhooks.run()
}

/** Sends what waits, as if its time had come. */
export async function deliverLater(app: TestApp): Promise<void> {
  await allRows(app.database, "update webhook_deliveries set due_at = now() where status = 'waiting'")
  await allRows(
    app.database,
    "update webhook_endpoints set busy_until = '-infinity', next_at = now() where lease is null"
  )
  await app.webhooks.run()
}

let invited = 0
/** Invites somebody, which is an event of the type `invitation.created`. Resolves to the id of the invitation. */
export async function invite(tenant: Tenant): Promise<string> {
  const reply = await tenant.send(post('/invitations', { email: `person-${++invited}@example.com`, role: 'viewer' }))
  if (reply.statusCode !== 201) throw new Error(reply.body)
  return reply.json().id
}

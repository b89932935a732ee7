import type { IncomingMessage } from 'node:http'
import fp from 'fastify-plugin'
import { type GateSettings, systemScope } from '../../db/gate/gate-query.ts'
import { queueAgencyNotice } from '../../db/queries/accounts/mails.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import {
  type Attempt,
  type ClaimedDelivery,
  claimWebhookDeliveries,
  type DeliveryToSend,
  lockLeasedEndpoint,
  readClaimedDelivery,
  recordAttempt,
  releaseEndpoint
} from '../../db/queries/webhooks/deliveries.ts'
import { resealWebhook } from '../../db/queries/webhooks/secrets.ts'
import { webhookBody } from '../../src/events/webhook-messages.ts'
import { endpointPause, readRetryAfter, retryDelay } from '../../src/events/webhook-retries.ts'
import { signMessage } from '../../src/events/webhook-signatures.ts'
import { createHostLookup } from '../../src/http/host-lookups.ts'
import { createOutboundClient, OutboundFailure } from '../../src/http/outbound-requests.ts'

declare module 'fastify' {
  interface FastifyInstance {
    webhooks: {
      /** Sends everything that is due now, and resolves when it was sent. Otherwise it is looked for once a second. */
      run(): Promise<void>
      /** Makes this process look for deliveries now. Returns at once. */
      wake(): void
    }
  }
}

const intervalMs = 1000
/** Requests under way from one process, and of one agency. */
const maxInFlight = 64
const maxPerAgency = 4
/** An attempt that takes longer is slow. Endpoints whose last one was slow get half of the requests at most, so that others go on. */
export const slowMs = 1000
const maxSlow = maxInFlight / 2
/** One attempt, from the look-up of the host to the end of the reply. */
export const webhookTimeoutMs = 15_000
/** Longer than an attempt and its record, so that no other process sends to the endpoint meanwhile. */
const lease_seconds = 60
/** How much of a reply is kept, and how much is read before the connection is closed. */
const keptBytes = 1024
const maxReadBytes = 64 * 1024
/** Requests under way that a shutdown waits for. The others are cut off, and sent again later. */
const drainMs = 2000

type Reply = { status: number; text: string; retryAfter: number | undefined }
type Result = Pick<Attempt, 'status' | 'error' | 'reply'> & { retryAfter: number | undefined }

/**
 * Delivers events to the endpoints of agencies, by Standard Webhooks. Any number of processes may do so at once: an endpoint is
 * leased to one of them. No lock is held during a request. A process that dies leaves a lease that expires, and then the same
 * message is sent again: a message arrives at least once, with the same id each time.
 */
export default fp(
  async (app) => {
    const { nodeEnv, dnsServers } = app.config
    const send = createOutboundClient({
      development: nodeEnv === 'development',
      findAddresses: createHostLookup({ servers: dnsServers }),
      timeoutMs: webhookTimeoutMs,
      readReply
    })
    const counts = { delivered: 0, failed: 0, given_up: 0 }
    const inFlight = new Set<Promise<void>>()
    let slowRequests = 0
    const closing = new AbortController()

    async function deliver(claimed: ClaimedDelivery): Promise<void> {
      const { tenant_id, delivery_id } = claimed
      const scope = { ...systemScope, tenant_id }
      const [delivery] = await app.gate.query(scope, readClaimedDelivery, claimed)
      if (!delivery) return
      if (!delivery.found) return settle(scope, claimed, delivery, 0, new Date(), unknownEvent)
      const secrets = app.webhookSecrets.open(delivery)
      await reseal(scope, tenant_id, delivery)
      const started_at = new Date()
      const before = performance.now()
      const result = await request(tenant_id, delivery, secrets, started_at)
      const duration_ms = Math.round(performance.now() - before)
      // an attempt that was cut off says nothing about the endpoint: its lease expires, and it is made again
      if (closing.signal.aborted && result.status === null) return
      if (result.error !== null) {
        app.log.info({ tenant_id, delivery_id, status: result.status, reason: result.error }, 'a webhook has failed')
      }
      await settle(scope, claimed, delivery, duration_ms, started_at, result)
    }

    async function request(
      tenant_id: string,
      { url, ...event }: DeliveryToSend,
      secrets: readonly string[],
      at: Date
    ): Promise<Result> {
      const body = webhookBody({ ...event, tenant_id })
      const headers = { 'content-type': 'application/json', ...signMessage({ id: event.id, body, at }, secrets) }
      try {
        const { status, text, retryAfter } = await send(url, { method: 'POST', headers, body, signal: closing.signal })
        const good = status >= 200 && status < 300
        const error = good ? null : status >= 300 && status < 400 ? 'redirect' : 'status'
        return { status, error, reply: text, retryAfter }
      } catch (err) {
        return { status: null, error: errorWord(err), reply: null, retryAfter: undefined }
      }
    }

    async function settle(
      scope: GateSettings,
      claimed: ClaimedDelivery,
      { attempts, recorded, url: sentTo }: DeliveryToSend,
      duration_ms: number,
      started_at: Date,
      { retryAfter, ...result }: Result
    ): Promise<void> {
      const { delivery_id } = claimed
      const unknown = result.error === unknownEvent.error
      const failed = unknown ? null : result.error !== null
      const retry = failed ? (retryDelay(recorded + 1, retryAfter) ?? null) : null
      const settled = await app.gate.transaction(scope, async (trx) => {
        const endpoint = await lockLeasedEndpoint(trx, claimed)
        if (!endpoint) return false
        const { id, url } = endpoint
        // what an address says that was changed meanwhile says nothing about the new one
        const learned = url === sentTo ? failed : null
        const reason = result.status === 410 ? 'gone' : failed && endpoint.given_up ? 'failing' : null
        const off = endpoint.enabled && url === sentTo ? reason : null
        await recordAttempt(trx, delivery_id, { number: attempts, started_at, duration_ms, ...result }, retry)
        const pause_seconds = learned ? endpointPause(endpoint.failures + 1, retryAfter) : 0
        await releaseEndpoint(trx, id, { failed: learned, slow: duration_ms > slowMs, pause_seconds, off })
        if (off === null) return true
        await recordAudit(trx, {
          action: 'webhook.disabled',
          actor_id: null,
          target_id: id,
          detail: { url, reason: off }
        })
        // its host only: addresses of webhooks often contain secrets
        await queueAgencyNotice(trx, 'webhook_disabled', { domain: new URL(url).hostname }, ['owner', 'admin'])
        return true
      })
      if (settled) counts[!failed && !unknown ? 'delivered' : retry === null ? 'given_up' : 'failed']++
    }

    /** Encrypts secrets anew that are encrypted with an older key, because that key is to be removed. */
    async function reseal(scope: GateSettings, tenant_id: string, row: DeliveryToSend): Promise<void> {
      const sealed = app.webhookSecrets.reseal(row)
      if (!sealed) return
      await app.gate.query(scope, resealWebhook, { tenant_id, id: row.endpoint_id, before: row.secret, ...sealed })
    }

    function begin(claimed: ClaimedDelivery): void {
      const slow = Number(claimed.slow)
      slowRequests += slow
      const work = deliver(claimed)
        .catch((err) => {
          const { tenant_id, delivery_id } = claimed
          app.log.warn({ err, tenant_id, delivery_id }, 'a webhook could not be worked on, and is tried again')
        })
        .finally(() => {
          inFlight.delete(work)
          slowRequests -= slow
          // the endpoint may have more to get
          job.wake()
        })
      inFlight.add(work)
    }

    async function claimDue(): Promise<number> {
      const batch = maxInFlight - inFlight.size
      if (batch === 0) return 0
      const values = { batch, most: maxPerAgency, most_slow: maxSlow - slowRequests, lease_seconds }
      const claimed = await app.gate.query(systemScope, claimWebhookDeliveries, values)
      for (const each of claimed) begin(each)
      return claimed.length
    }

    app.addHook('onClose', async () => {
      const late = setTimeout(() => closing.abort(), drainMs)
      await Promise.all(inFlight)
      clearTimeout(late)
    })
    /** How many endpoints the last run has claimed. */
    let claimed = 0
    const job = app.jobs.define({
      name: 'webhooks',
      intervalMs,
      tasks: {
        async webhooks() {
          claimed = 0
          claimed = await claimDue()
        }
      }
    })

    app.decorate('webhooks', {
      async run() {
        for (let mayBeMore = true; mayBeMore; ) {
          await job.run()
          mayBeMore = claimed > 0 || inFlight.size > 0
          await Promise.all(inFlight)
        }
      },
      wake: job.wake
    })
    app.metrics.counter('aggios_webhook_attempts_total', 'Attempts to deliver an event to a webhook, by outcome', () =>
      Object.entries(counts).map(([outcome, value]) => ({ labels: { outcome }, value }))
    )
    app.metrics.gauge('aggios_webhooks_in_flight', 'Requests to webhooks that are under way', () => inFlight.size)
    const unfollow = app.events.follow(job.wake)
    app.addHook('preClose', async () => unfollow())
  },
  { name: 'webhook-deliveries', dependencies: ['database', 'metrics', 'jobs', 'events', 'webhook-secrets', 'config'] }
)

/** The audit log no longer has the event: nothing can be sent, and the endpoint has not failed. */
const unknownEvent: Result = { status: null, error: 'unknown_event', reply: null, retryAfter: undefined }

/** Reads the beginning of a reply, and closes the connection when there is more. */
async function readReply(reply: IncomingMessage): Promise<Reply> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of reply as AsyncIterable<Buffer>) {
    if (size < keptBytes) chunks.push(chunk.subarray(0, keptBytes - size))
    size += chunk.length
    if (size > maxReadBytes) break
  }
  // PostgreSQL takes no NUL in a text
  const text = Buffer.concat(chunks).toString().replaceAll('\0', '\ufffd')
  return { status: reply.statusCode ?? 0, text, retryAfter: readRetryAfter(reply.headers['retry-after']) }
}

/** Why there is no reply, in a word. */
function errorWord(err: unknown): string {
  if (!(err instanceof OutboundFailure)) return 'failed'
  if (err.reason !== 'failed') return err.reason
  const { code = '' } = (err.cause ?? {}) as { code?: string }
  if (code === 'ECONNREFUSED') return 'connection_refused'
  return /^(?:ERR_TLS|ERR_SSL|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO|EPROTO)/.test(code) ? 'tls' : 'connection'
}

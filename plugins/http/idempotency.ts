import { createHash } from 'node:crypto'
import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { inScope, queryIn, type TenantTransaction } from '../../db/gate/gate.ts'
import type { Scope } from '../../db/gate/gate-query.ts'
import { confirmEarlier } from '../../db/queries/confirmation.ts'
import { type ClaimedKey, claimKey, type StoredReply, storeReply } from '../../db/queries/idempotency.ts'
import { messageKeyword } from '../../src/http/field-errors.ts'
import { canonicalJson } from '../../src/http/json.ts'
import { idempotencyKeyInUse, idempotencyKeyReused, sessionRevoked } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The route accepts an Idempotency-Key. Its handler must use `request.createOnce` for its changes. */
    repeatable?: true
  }
  interface FastifyRequest {
    /**
     * Runs `work` in a transaction like `withTenant`. Its result is the reply. With an Idempotency-Key it is also the
     * reply to every repetition. Set the status before the call, and headers that belong to the reply (ETag, Location)
     * inside `work`.
     *
     * The reply is stored by the same transaction, so a crash at any moment leaves at most one created object. When
     * `work` throws, nothing is stored and the key stays free, so throw refusals inside. On a repetition `work` does
     * not run, and the result is parsed from the stored reply. So the code after the call must be safe to run again.
     *
     * The key belongs to the signed-in person in the token's tenant, also when `work` runs in another `scope`.
     */
    createOnce<T>(reply: FastifyReply, work: (trx: TenantTransaction) => Promise<T>, scope?: Scope): Promise<T>
  }
}

/** A string of RFC 9651, with or without its quotes. */
const keyPattern = '^(?:"(?:[!#-\\[\\]-~]|\\\\["\\\\]){1,255}"|[!#-\\[\\]-~]{1,255})$'

const keyHeader = {
  type: 'object',
  properties: {
    'idempotency-key': {
      type: 'string',
      pattern: keyPattern,
      [messageKeyword]: 'must be 1 to 255 visible characters, in quotes or bare',
      description:
        'Chosen by the client for one act: 1 to 255 visible characters, in quotes or bare. For 24 hours the same key with the same body gives the same reply again, and nothing is made twice.',
      examples: ['"019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e"']
    }
  }
}

const storedHeaders = ['etag', 'location']

/**
 * Answers a request that is sent again with the same Idempotency-Key by the first reply, and makes its changes once.
 */
export default fp(
  async (app) => {
    app.addHook('onRoute', (route) => {
      if (!route.config?.repeatable) return
      route.schema = { ...route.schema, headers: keyHeader }
      route.config.problems = [...(route.config.problems ?? []), 'idempotency_key_in_use', 'idempotency_key_reused']
    })

    app.decorateRequest('createOnce', async function <
      T
    >(this: FastifyRequest, reply: FastifyReply, work: (trx: TenantTransaction) => Promise<T>, scope?: Scope) {
      const claimed = claimOf(this)
      if (!claimed) return this.withTenant(work, scope)
      const { value, stored, replayed } = await this.withTenant(async (trx) => {
        const known = await claimKey(trx, claimed)
        if (known === 'in_use') throw idempotencyKeyInUse({ headers: { 'retry-after': '1' } })
        if (known === 'reused') throw idempotencyKeyReused()
        if (known) {
          await queryIn(trx, confirmEarlier, {})
          return { value: JSON.parse(known.body) as T, stored: known, replayed: true }
        }
        const value = scope ? await inScope(trx, scope, claimed.owner, () => work(trx)) : await work(trx)
        const stored = { status: reply.statusCode, headers: headersOf(reply), body: reply.serialize(value) as string }
        if (!(await storeReply(trx, claimed, stored))) throw sessionRevoked()
        return { value, stored, replayed: false }
      })
      send(reply, stored)
      if (replayed) reply.header('idempotency-replayed', 'true')
      return value
    })
  },
  { name: 'idempotency', dependencies: ['database'] }
)

function claimOf(request: FastifyRequest): ClaimedKey | undefined {
  const { method, routeOptions, user, params, body } = request
  if (!routeOptions.config.repeatable) throw new TypeError(`${routeOptions.url} is not declared to be repeatable`)
  const given = request.headers['idempotency-key'] as string | undefined
  if (given === undefined) return undefined
  const key = given.startsWith('"') ? given.slice(1, -1).replaceAll(/\\(.)/g, '$1') : given
  const fingerprint = createHash('sha256')
    .update(canonicalJson([params, body]))
    .digest()
  const owner = { tenant_id: user.tenant_id, user_id: user.user_id }
  return { owner, route: `${method} ${routeOptions.url}`, key, fingerprint }
}

function headersOf(reply: FastifyReply): Record<string, string> {
  return Object.fromEntries(
    storedHeaders.flatMap((name) => (reply.hasHeader(name) ? [[name, String(reply.getHeader(name))]] : []))
  )
}

/** Sends the stored bytes, whatever value the handler returns. */
function send(reply: FastifyReply, { status, headers, body }: StoredReply): void {
  reply
    .code(status)
    .headers(headers)
    .type('application/json; charset=utf-8')
    .serializer(() => body)
}

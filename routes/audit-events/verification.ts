import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Statement } from '../../db/gate/statement.ts'
import {
  type Broken,
  checkNextSeal,
  checkTail,
  readAuditState,
  readAuditTail,
  readStatements
} from '../../db/queries/audit-seals.ts'
import { createAuditKeys } from '../../src/auth/audit-keys.ts'
import { overloaded, rateLimited } from '../../src/http/problems.ts'
import { createBoundedQueue, QueueFull } from '../../src/limits/bounded-queue.ts'

/** For so long the database works for one request, and so long a request takes at most where others wait too. */
const workMs = 500
const patienceMs = 2000
/** A pause is as long as the work before it, and no longer than this. */
const maxPauseMs = 1000
/** Who waits for their turn in this process. */
const maxWaiting = 64

/**
 * Checks logs against their seals, a part for each request. Hashing is work for the database, so in each process one segment is
 * checked at a time, people take turns, and after each the database has a pause as long: others' writes hardly notice.
 */
export function createVerification(app: FastifyInstance) {
  const keys = createAuditKeys(app.config.passwordPepper)
  const queue = createBoundedQueue(1, maxWaiting, patienceMs)
  const atWork = new Set<string>()

  /** A statement when it is this person's turn. */
  async function inTurn<Values extends object, Row>(
    request: FastifyRequest,
    statement: Statement<Values, Row>,
    values: Values
  ): Promise<{ row: Row | undefined; ms: number }> {
    return queue.run(async () => {
      const begunAt = performance.now()
      const [row] = await request.tenantQuery(statement, values)
      const ms = performance.now() - begunAt
      await sleep(Math.min(ms, maxPauseMs))
      return { row, ms }
    }, request.user.user_id)
  }

  /** From where a cursor says on. Throws `rate_limited` to who checks already, whichever of their agencies. */
  async function verify(request: FastifyRequest, cursor: string | undefined) {
    const { user_id } = request.user
    const position = app.cursors.require(scopeOf(request), cursor)
    if (atWork.has(user_id)) throw rateLimited({ detail: 'a log is checked already', headers: { 'retry-after': '1' } })
    atWork.add(user_id)
    try {
      return await verifyPart(request, position)
    } catch (err) {
      if (err instanceof QueueFull) throw overloaded({ headers: { 'retry-after': '2' }, cause: err })
      throw err
    } finally {
      atWork.delete(user_id)
    }
  }

  async function verifyPart(request: FastifyRequest, [seq = '0', sealed = '0', digest]: string[]) {
    const { tenant_id } = request.user
    const [state] = await request.tenantQuery(readAuditState, {})
    if (!state) throw new Error('the audit log has no state')
    const { signed_from, kept_from } = readStatements(keys, state)
    const times = { signed_from: dateOf(signed_from), kept_from: dateOf(kept_from) }
    let after = Number(seq)
    let sealed_events = Number(sealed)
    let head = digest ?? null
    const result = (broken: Broken | null, next_cursor: string | null = null) => {
      const status = broken ? ('broken' as const) : ('intact' as const)
      return { status, sealed_events, head, broken, ...times, next_cursor }
    }
    const begunAt = performance.now()
    for (let workedMs = 0; ; ) {
      const values = { tenant_id, after, kept_from, signed_from: signed_from ?? 'infinity' }
      const { row: check, ms } = await inTurn(request, checkNextSeal, values)
      workedMs += ms
      if (!check) {
        const { row: tail } = await inTurn(request, readAuditTail, { tenant_id, kept_from })
        if (!tail) throw new Error('the audit log has no state')
        // one that was made meanwhile
        if (tail.kept && tail.seq !== null && tail.seq > after) continue
        return result(checkTail(keys, tenant_id, tail, signed_from))
      }
      // what was looked at before must still be what it was, also when that was another request
      const isOther =
        check.seq === after + 1 && check.last_digest !== null && head !== null && check.last_digest !== head
      const reason = check.broken_reason ?? (check.chained && !isOther ? null : 'unchained')
      if (reason) return result({ segment: check.seq, id: check.broken_id, reason })
      sealed_events += check.events
      head = check.digest
      after = check.seq
      if (workedMs >= workMs || performance.now() - begunAt >= patienceMs) {
        return result(null, app.cursors.issue(scopeOf(request), [String(after), String(sealed_events), head]))
      }
    }
  }

  return verify
}

const scopeOf = ({ user }: FastifyRequest) => `audit verification ${user.tenant_id}`

/** A time of the database in the API's spelling; null for the beginning of all times. */
function dateOf(at: string | null): string | null {
  return at === null || at === '-infinity' ? null : new Date(at).toISOString()
}

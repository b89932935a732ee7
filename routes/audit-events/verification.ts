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

/** The database time of one request. */
const workMs = 500
/** The longest time of one request, including the waits for others. */
const timeoutMs = 2000
/** The longest pause after a statement. */
const maxPauseMs = 1000
/** Statements that may wait in this process. */
const maxWaiting = 64

/**
 * Returns a function that checks a log against its seals, one part per request.
 *
 * The database does the hashing. So a process checks one segment at a time, in round-robin order of people, and pauses
 * after each statement for as long as the statement took. Other requests' writes are hardly slowed down.
 */
export function createVerification(app: FastifyInstance) {
  const keys = app.secrets.following('passwordPepper', createAuditKeys)
  const queue = createBoundedQueue(1, maxWaiting, timeoutMs)
  /** The people whose verification is running. */
  const running = new Set<string>()

  /** Runs a statement when it is this person's turn, and pauses after it. */
  async function runQueued<Values extends object, Row>(
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

  /**
   * Checks the log from a cursor on. Throws `rate_limited` while the person has a check running, in any of their
   * agencies.
   */
  async function verify(request: FastifyRequest, cursor: string | undefined) {
    const { user_id } = request.user
    const position = app.cursors.require(scopeOf(request), cursor)
    if (running.has(user_id)) throw rateLimited({ detail: 'a log is checked already', headers: { 'retry-after': '1' } })
    running.add(user_id)
    try {
      return await verifyPart(request, position)
    } catch (err) {
      if (err instanceof QueueFull) throw overloaded({ headers: { 'retry-after': '2' }, cause: err })
      throw err
    } finally {
      running.delete(user_id)
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
      const { row: check, ms } = await runQueued(request, checkNextSeal, values)
      workedMs += ms
      if (!check) {
        const { row: tail } = await runQueued(request, readAuditTail, { tenant_id, kept_from })
        if (!tail) throw new Error('the audit log has no state')
        // a segment was sealed between the two statements
        if (tail.kept && tail.seq !== null && tail.seq > after) continue
        return result(checkTail(keys, tenant_id, tail, signed_from))
      }
      // the previous segment, perhaps checked by an earlier request, must not have been replaced since
      const isReplaced =
        check.seq === after + 1 && check.last_digest !== null && head !== null && check.last_digest !== head
      const reason = check.broken_reason ?? (check.chained && !isReplaced ? null : 'unchained')
      if (reason) return result({ segment: check.seq, id: check.broken_id, reason })
      sealed_events += check.events
      head = check.digest
      after = check.seq
      if (workedMs >= workMs || performance.now() - begunAt >= timeoutMs) {
        return result(null, app.cursors.issue(scopeOf(request), [String(after), String(sealed_events), head]))
      }
    }
  }

  return verify
}

const scopeOf = ({ user }: FastifyRequest) => `audit verification ${user.tenant_id}`

/** Formats a time of the database for the API; `-infinity` becomes null. */
function dateOf(at: string | null): string | null {
  return at === null || at === '-infinity' ? null : new Date(at).toISOString()
}

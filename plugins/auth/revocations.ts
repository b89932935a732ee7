import { setImmediate as breathe } from 'node:timers/promises'
import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { revocationsPage, revocationsSnapshot, revocationsUnseen } from '../../db/queries/directory.ts'
import type { AccessClaims } from '../../src/auth/claims.ts'
import { createRevocationList } from '../../src/auth/revocation-list.ts'
import { type Problem, sessionRevoked, tenantSuspended, tokenExpired, unavailable } from '../../src/http/problems.ts'
import { nilUuid } from '../../src/uuids.ts'

type TenantListener = (tenantId: string | undefined) => void

declare module 'fastify' {
  interface FastifyInstance {
    revocations: {
      /** Why this token is no longer to be believed, or undefined. From memory; no I/O. */
      find(claims: AccessClaims): Problem | undefined
      /** Reads what was just published, so that the next request to this process sees it, and tells the others. Never rejects. */
      readNow(): Promise<void>
      /** Calls back with the id of each tenant of which something has changed, or undefined: anything may have. */
      onTenantChange(listener: TenantListener): void
      stats(): { entries: number; lag_ms: number }
    }
  }
}

/** Twice a second, so that what was published is in force everywhere within one. */
const intervalMs = 500
export const staleAfterMs = 5000
const topic = 'revocations'
const never = -2 * staleAfterMs
const refusals = { revoked: sessionRevoked, outdated: tokenExpired, suspended: tenantSuspended }

/** Rows of one statement when all are read: each page has the time-out of a statement for itself. */
const pageRows = 10_000

/**
 * Remembers which issued tokens must be refused. A revocation is a row, written by the transaction that causes it; every
 * process reads the new ones twice a second: those that were not visible in the snapshot of its last read, so that no commit
 * is missed however late it comes, and none is read twice. News through Redis only makes a process read sooner.
 *
 * When nothing could be read for five seconds, nothing is known and signed-in requests get 503.
 */
export default fp(
  async (app) => {
    const memory = createRevocationList()
    const listeners: TenantListener[] = []
    /** The snapshot of the last read; undefined: everything is to be read. */
    let seen: string | undefined
    /** By a clock that nobody sets; before the first read nothing is known. */
    let lastRead = never
    let reading: Promise<void> | undefined
    let next: Promise<void> | undefined
    let timer: NodeJS.Timeout | undefined

    function tell(tenantId: string | undefined): void {
      for (const listener of listeners) listener(tenantId)
    }

    async function read(): Promise<void> {
      // whoever was halted for so long may have missed what has expired since
      if (performance.now() - lastRead > staleAfterMs) {
        memory.clear()
        seen = undefined
      }
      try {
        if (seen === undefined) await readAll()
        else await readUnseen(seen)
      } catch (err) {
        // after a failover transaction ids may come again, and what was published meanwhile may be gone by the next read
        seen = undefined
        tell(undefined)
        throw err
      }
    }

    /**
     * Reads every living revocation by pages, and then what was not visible when that began. Until the end, what was known
     * before stays known and the time of the last whole read counts: a part of the facts is no reason to serve. A failover
     * may have undone what was read before, and so whatever is not seen again is dropped.
     */
    async function readAll(): Promise<void> {
      if (!memory.beginReread()) {
        lastRead = never
        memory.clear()
      }
      const [now] = await app.gate.query(systemScope, revocationsSnapshot, {})
      if (!now) throw new Error('the database gave no snapshot')
      const readPage = (after_tenant: string, after_id: number) =>
        app.gate.query(systemScope, revocationsPage, { after_tenant, after_id, limit: pageRows })
      let page: ReturnType<typeof readPage> | undefined = readPage(nilUuid, 0)
      while (page) {
        const [read]: Awaited<typeof page> = await page
        if (!read) throw new Error('the database gave no page')
        // asked for before this one is remembered, so that the database and this process work at once
        page = read.found === pageRows ? readPage(read.last_tenant, read.last_id) : undefined
        if (read.found > 0) memory.rememberLines(read.entries)
      }
      await readUnseen(now.snapshot)
      tell(undefined)
      for (const _ of memory.endReread()) await breathe()
    }

    async function readUnseen(before: string): Promise<void> {
      const startedAt = performance.now()
      const rows = await app.gate.query(systemScope, revocationsUnseen, { seen: before })
      const changed = new Set<string | undefined>()
      let snapshot = before
      for (const [index, row] of rows.entries()) {
        if (index % pageRows === pageRows - 1) await breathe()
        if (row.snapshot !== null) {
          snapshot = row.snapshot
          continue
        }
        memory.remember(row)
        // by the entry and not by the plan: two of them changed at once have no order
        if (row.kind === 'plan') changed.add(undefined)
        else if (row.kind === 'tenant') changed.add(row.subject)
      }
      for (const tenantId of changed) tell(tenantId)
      seen = snapshot
      lastRead = startedAt
    }

    /** One read at a time; all who ask while one is under way share the one that starts after it. */
    function readOnce(): Promise<void> {
      if (!reading) {
        reading = read().finally(() => {
          reading = undefined
        })
        return reading
      }
      next ??= reading
        .catch(() => {})
        .then(() => {
          next = undefined
          return readOnce()
        })
      return next
    }

    const readOrWarn = () => readOnce().catch((err) => app.log.warn({ err }, 'revocations could not be read'))

    function poll(): void {
      timer = setTimeout(() => {
        memory.prune()
        readOrWarn().finally(poll)
      }, intervalMs)
      timer.unref()
    }

    app.decorate('revocations', {
      find(claims: AccessClaims) {
        if (performance.now() - lastRead > staleAfterMs) return unavailable({ headers: { 'retry-after': '1' } })
        const reason = memory.find(claims)
        return reason && refusals[reason]()
      },
      readNow() {
        app.shared.announce(topic)
        return readOrWarn()
      },
      onTenantChange: (listener: TenantListener) => void listeners.push(listener),
      stats: () => ({
        entries: memory.size(),
        lag_ms: Math.round(performance.now() - lastRead)
      })
    })

    const { stats } = app.revocations
    app.metrics.gauge('aggios_revocations', 'Revocations that are remembered', () => stats().entries)
    app.metrics.gauge('aggios_revocation_lag_seconds', 'Since revocations were read', () => stats().lag_ms / 1000)

    let closed = false
    // that there is something new, and not what: the database is asked
    app.shared.onAnnounced(topic, () => {
      if (!closed) readOrWarn()
    })
    app.addHook('onReady', async () => {
      await readOnce()
      if (!closed) poll()
    })
    app.addHook('onClose', async () => {
      closed = true
      clearTimeout(timer)
      await reading?.catch(() => {})
    })
  },
  { name: 'revocations', dependencies: ['database', 'redis', 'metrics'] }
)

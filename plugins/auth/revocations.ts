import { setImmediate as yieldToEventLoop } from 'node:timers/promises'
import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { changesPage, changesSnapshot, changesUnseen } from '../../db/queries/directory.ts'
import type { AccessClaims } from '../../src/auth/claims.ts'
import { createRevocationList } from '../../src/auth/revocation-list.ts'
import { type Problem, sessionRevoked, tenantSuspended, tokenExpired, unavailable } from '../../src/http/problems.ts'
import { createPoller } from '../../src/poller.ts'
import { createThrottle } from '../../src/throttle.ts'
import { nilUuid } from '../../src/uuids.ts'

/** What a read has seen, and of which server. */
type Seen = { snapshot: string; source: string }
type TenantListener = (tenantId: string | undefined) => void

declare module 'fastify' {
  interface FastifyInstance {
    revocations: {
      /** The reason to refuse a token with these claims, or undefined. Reads memory only; no I/O. */
      find(claims: AccessClaims): Problem | undefined
      /**
       * Reads the revocations that were just committed, so that this process refuses with the next request. Announces
       * them to the other processes. Never rejects.
       */
      readNow(): Promise<void>
      /**
       * Calls the listener with the id of each tenant that has changed, or with undefined when any tenant may have
       * changed.
       */
      onTenantChange(listener: TenantListener): void
      /** Calls the listener after each read that may have brought new reasons to refuse a token. */
      onRevoked(listener: () => void): void
      stats(): { entries: number; lag_ms: number }
    }
  }
}

/** Half a second, so that a revocation is in force in all processes within a second. */
const intervalMs = 500
export const staleAfterMs = 5000
const topic = 'revocations'
/** A revocation is read at once. */
const writesTopic = 'writes'
/** How often a process announces at most that it has written what others may remember, and reads what others have written. */
const announceMs = 50
const never = -2 * staleAfterMs
const refusals = { revoked: sessionRevoked, outdated: tokenExpired, suspended: tenantSuspended }

/** The rows of a page when all revocations are read. Each page is one statement, with a timeout of its own. */
const pageRows = 10_000

/**
 * Reads the change feed, and remembers which issued tokens must be refused. A change is a row, which is written by the
 * transaction that causes it. The caches of tenants and of reads forget what has changed.
 *
 * Every process reads the new rows twice a second: the rows that were not visible in the snapshot of its last read. So
 * a transaction that commits late is not missed, and no row is read twice. An announcement through Redis only makes a
 * process read sooner.
 *
 * When another server answers than before, by a failover say, the read counts as failed, and everything is read again.
 *
 * Five seconds after the last successful read, the memory counts as unknown, and signed-in requests get 503.
 */
export default fp(
  async (app) => {
    const memory = createRevocationList()
    const listeners: TenantListener[] = []
    const revokedListeners: (() => void)[] = []
    /** The snapshot of the last read. Undefined when all revocations must be read. */
    let seen: Seen | undefined
    /** When the last successful read began, by the monotonic clock. */
    let lastRead = never

    function notify(tenantId: string | undefined): void {
      for (const listener of listeners) listener(tenantId)
    }

    function forgetAll(): void {
      app.readMemory.forgetAll()
      notify(undefined)
    }

    async function read(): Promise<void> {
      memory.prune()
      // a process that was halted for so long may have missed revocations that have expired since
      if (performance.now() - lastRead > staleAfterMs) {
        memory.clear()
        seen = undefined
      }
      try {
        const revoked = seen === undefined ? await readAll() : await readUnseen(seen)
        if (revoked) for (const listener of revokedListeners) listener()
      } catch (err) {
        // after a failover, transaction ids may be used again, and a revocation may be gone by the next read
        seen = undefined
        forgetAll()
        throw err
      }
    }

    /**
     * Reads all unexpired revocations page by page, and then the ones that were not visible when the first page was
     * read.
     *
     * Until the end, the earlier entries stay in force and `lastRead` stays as it was, because a part of the
     * revocations is not enough to serve. At the end, entries that were not read again are dropped: a failover may have
     * undone them.
     */
    async function readAll(): Promise<true> {
      if (!memory.beginReread()) {
        lastRead = never
        memory.clear()
      }
      const [now] = await app.gate.query(systemScope, changesSnapshot, {})
      if (!now) throw new Error('the database gave no snapshot')
      const readPage = (after_tenant: string, after_id: number) =>
        app.gate.query(systemScope, changesPage, { after_tenant, after_id, limit: pageRows })
      let page: ReturnType<typeof readPage> | undefined = readPage(nilUuid, 0)
      while (page) {
        const [read]: Awaited<typeof page> = await page
        if (!read) throw new Error('the database gave no page')
        // request the next page before this one is processed, so that the database and this process work in parallel
        page = read.found === pageRows ? readPage(read.last_tenant, read.last_id) : undefined
        if (read.found > 0) memory.rememberLines(read.entries)
      }
      await readUnseen(now, forgetAll)
      for (const _ of memory.endReread()) await yieldToEventLoop()
      return true
    }

    /**
     * Calls `onRead` before what was remembered earlier counts as known again. Resolves to whether anything was revoked.
     */
    async function readUnseen(before: Seen, onRead = () => {}): Promise<boolean> {
      const startedAt = { now: performance.now(), wall: Date.now() }
      const rows = await app.gate.query(systemScope, changesUnseen, { seen: before.snapshot })
      const changed = new Set<string | undefined>()
      let next = before
      let revoked = false
      for (const [index, row] of rows.entries()) {
        if (index % pageRows === pageRows - 1) await yieldToEventLoop()
        if (row.snapshot !== null) {
          if (row.source !== before.source) throw new Error('another server, or another database, answers')
          next = row
          continue
        }
        switch (row.kind) {
          case 'user':
          case 'agency':
          case 'usage':
          case 'swept':
            app.readMemory.forget(row)
            break
          default:
            memory.remember(row)
            revoked = true
            // forget all tenants and not only those of the plan: two concurrent changes of plans have no order
            if (row.kind === 'plan') changed.add(undefined)
            else if (row.kind === 'tenant') changed.add(row.subject)
        }
      }
      for (const tenantId of changed) notify(tenantId)
      onRead()
      seen = next
      lastRead = startedAt.now
      app.readMemory.feedRead(startedAt)
      return revoked
    }

    const poller = createPoller({
      intervalMs,
      work: read,
      onError: (err) => app.log.warn({ err }, 'revocations could not be read')
    })

    app.decorate('revocations', {
      find(claims: AccessClaims) {
        if (performance.now() - lastRead > staleAfterMs) return unavailable({ headers: { 'retry-after': '1' } })
        const reason = memory.find(claims)
        return reason && refusals[reason]()
      },
      async readNow() {
        app.shared.announce(topic)
        await poller.run().catch(() => {})
      },
      onTenantChange: (listener: TenantListener) => void listeners.push(listener),
      onRevoked: (listener: () => void) => void revokedListeners.push(listener),
      stats: () => ({
        entries: memory.size(),
        lag_ms: Math.round(performance.now() - lastRead)
      })
    })

    const { stats } = app.revocations
    app.metrics.gauge('aggios_revocations', 'Revocations that are remembered', () => stats().entries)
    app.metrics.gauge('aggios_revocation_lag_seconds', 'Since revocations were read', () => stats().lag_ms / 1000)

    // an announcement carries no content; the database has it
    app.shared.onAnnounced(topic, poller.wake)
    // many processes may write at once: each says so now and then, and each reads now and then
    const announceWrites = createThrottle(announceMs, () => app.shared.announce(writesTopic))
    const readWrites = createThrottle(announceMs, poller.wake)
    app.readMemory.onWrite(announceWrites.run)
    app.shared.onAnnounced(writesTopic, readWrites.run)
    app.addHook('onReady', async () => {
      await poller.run()
      poller.start()
    })
    // not in preClose: the requests in progress still need the revocations
    app.addHook('onClose', () => {
      announceWrites.stop()
      readWrites.stop()
      return poller.stop()
    })
  },
  { name: 'revocations', dependencies: ['database', 'redis', 'metrics', 'read-memory'] }
)

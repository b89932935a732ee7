import fp from 'fastify-plugin'
import { allRevocations, revocationsSince } from '../db/directory.ts'
import { type Problem, sessionRevoked, tenantSuspended, tokenExpired, unavailable } from '../src/errors.ts'
import type { AccessClaims } from './authentication.ts'

type TenantListener = (tenantId: string | undefined) => void
type Entry = { id: bigint; state: string | null; expires_at: number }

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
const staleAfterMs = 5000
const topic = 'revocations'

/**
 * Remembers which issued tokens must be refused. A revocation is a row, written by the transaction that causes it; every
 * process reads the new ones twice a second, by transaction id, so that no commit is missed however late it comes. News through
 * Redis only makes a process read sooner.
 *
 * When nothing could be read for five seconds, nothing is known and signed-in requests get 503.
 */
export default fp(
  async (app) => {
    const sessions = new Map<string, Entry>()
    const members = new Map<string, Entry>()
    const tenants = new Map<string, Entry>()
    /** By the entry and not by the plan: two of them changed at once have no order. */
    const plans = new Map<string, Entry>()
    const everything = [sessions, members, tenants, plans]
    const listeners: TenantListener[] = []
    let seen = '0'
    /** By a clock that nobody sets; before the first read nothing is known. */
    let lastRead = -2 * staleAfterMs
    let reading: Promise<void> | undefined
    let next: Promise<void> | undefined
    let timer: NodeJS.Timeout | undefined

    function tell(tenantId: string | undefined): void {
      for (const listener of listeners) listener(tenantId)
    }

    /** Before all is read again: a failover may have undone what was read before, and then it is true no more. */
    function forgetAll(): void {
      for (const entries of everything) entries.clear()
      tell(undefined)
    }

    async function read(): Promise<void> {
      const startedAt = performance.now()
      // whoever was halted for so long may have missed what has expired since
      if (startedAt - lastRead > staleAfterMs) seen = '0'
      const all = seen === '0'
      try {
        const news = all ? allRevocations : revocationsSince
        const rows = await app.gate.query({ tenant_id: null, user_id: null, request: '' }, news, { seen })
        if (all) forgetAll()
        for (const { id, kind, tenant_id, subject, state, expires_at } of rows) {
          if (id === null) continue
          const entry = { id: BigInt(id), state, expires_at: expires_at.getTime() }
          if (kind === 'session') sessions.set(subject, entry)
          else if (kind === 'member') keepNewest(members, memberKey(tenant_id, subject), entry)
          else if (kind === 'plan') keepNewest(plans, id, entry) && tell(undefined)
          else keepNewest(tenants, subject, entry) && tell(subject)
        }
        seen = rows[0]?.next ?? seen
        lastRead = startedAt
      } catch (err) {
        // after a failover transaction ids may come again, and what was published meanwhile may be gone by the next read
        seen = '0'
        tell(undefined)
        throw err
      }
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
        prune()
        readOrWarn().finally(poll)
      }, intervalMs)
      timer.unref()
    }

    function prune(): void {
      const now = Date.now()
      for (const entries of everything) {
        for (const [key, entry] of entries) if (entry.expires_at < now) entries.delete(key)
      }
    }

    app.decorate('revocations', {
      find(claims: AccessClaims) {
        if (performance.now() - lastRead > staleAfterMs) return unavailable({ headers: { 'retry-after': '1' } })
        if (sessions.has(claims.sid)) return sessionRevoked()
        const member = members.get(memberKey(claims.tenant_id, claims.user_id))
        if (member?.state === null) return sessionRevoked()
        if (member && member.state !== claims.role) return tokenExpired()
        if (tenants.get(claims.tenant_id)?.state === 'suspended') return tenantSuspended()
        return undefined
      },
      readNow() {
        app.shared.announce(topic)
        return readOrWarn()
      },
      onTenantChange: (listener: TenantListener) => void listeners.push(listener),
      stats: () => ({
        entries: sessions.size + members.size + tenants.size,
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

const memberKey = (tenantId: string, userId: string) => tenantId + userId

/** Of two entries about one subject the higher id is the later one. Says whether this one was news. */
function keepNewest(entries: Map<string, Entry>, key: string, entry: Entry): boolean {
  const known = entries.get(key)
  if (known && known.id >= entry.id) return false
  // what was known for longer must not be forgotten earlier
  entries.set(key, { ...entry, expires_at: Math.max(entry.expires_at, known?.expires_at ?? 0) })
  return true
}

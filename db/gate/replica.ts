import { createPoller } from '../../src/poller.ts'
import type { Timeouts } from './connection-settings.ts'
import { type ConnectionPool, queryOnPool } from './connections.ts'
import { classifyFailure } from './failures.ts'
import type { GateSettings } from './gate-query.ts'
import { UnsafeRole } from './role-check.ts'
import { type Statement, valuesOf } from './statement.ts'

const intervalMs = 1000
export const staleAfterMs = 10_000

/** The end of the primary's write-ahead log (WAL), and when it was read. */
type PrimaryPosition = { position: number; at: number }

export type Replica = ReturnType<typeof createReplica>

/**
 * Runs reads on a replica of the database. A replica may lag, so only long reads with `Statement.replica` come here, never
 * a read that a decision depends on, or in which a client looks for its own change.
 *
 * The replica is used while it is known to have everything that the primary had at most ten seconds ago. The lag is measured
 * by positions in the WAL, not by timestamps: by timestamps, a replica that is cut off from its primary looks the same as one
 * whose primary has nothing to write.
 */
export function createReplica({
  pool,
  inlineTimeouts,
  primaryPosition,
  onChange
}: {
  pool: ConnectionPool
  inlineTimeouts: Timeouts | undefined
  primaryPosition: () => Promise<number>
  onChange: (usable: boolean, err?: Error) => void
}) {
  const movedToPrimary = new WeakSet<object>()
  let positions: PrimaryPosition[] = []
  let completeUntil = Number.NEGATIVE_INFINITY
  let wasUsable = false

  const isUsable = () => performance.now() - completeUntil < staleAfterMs

  /** Null when the replica has been promoted: its WAL is no longer a copy of the primary's. */
  async function replayedPosition(): Promise<number | null> {
    // as text: this query sets no settings, and the text is exact whatever the connection's extra_float_digits is
    const { rows } = await pool.query<{ position: string | null }>(`
      select case when pg_is_in_recovery() then pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::text end as position`)
    const position = rows[0]?.position ?? null
    return position === null ? null : Number(position)
  }

  async function measure(): Promise<void> {
    const at = performance.now()
    positions = [...positions.filter((mark) => at - mark.at < staleAfterMs), { position: await primaryPosition(), at }]
    const replayed = await replayedPosition()
    const reached = positions.findLast((mark) => replayed !== null && mark.position <= replayed)
    completeUntil = reached?.at ?? Number.NEGATIVE_INFINITY
  }

  /** Rejects only with UnsafeRole: a replica that is configured like that must not be used at all. */
  async function refresh(): Promise<void> {
    let failure: Error | undefined
    try {
      await measure()
    } catch (err) {
      if (err instanceof UnsafeRole) throw err
      failure = err as Error
      completeUntil = Number.NEGATIVE_INFINITY
    }
    if (isUsable() !== wasUsable) {
      wasUsable = isUsable()
      onChange(wasUsable, failure)
    }
  }

  const poller = createPoller({ intervalMs, work: refresh, onError: (err) => onChange(false, err as Error) })

  return {
    async start(): Promise<void> {
      await refresh()
      poller.start()
    },

    /**
     * Resolves to the rows, or to undefined when the caller must ask the primary. A `reader` (a request) that has been sent
     * to the primary stays there: the next page of an export must not come from a copy that is older than the page before.
     */
    async query<Values extends object, Row>(
      reader: object,
      settings: GateSettings,
      statement: Statement<Values, Row>,
      values: Values
    ): Promise<Row[] | undefined> {
      if (isUsable() && !movedToPrimary.has(reader)) {
        try {
          const config = { name: statement.name, text: statement.text, values: valuesOf(statement, values) }
          return (await queryOnPool(pool, settings, config, inlineTimeouts)) as Row[]
        } catch (err) {
          const failure = classifyFailure(err)
          // a read that is too slow here would be too slow on the primary too, and would delay other queries there
          if (failure === 'timeout') throw err
          if (failure === 'connection') completeUntil = Number.NEGATIVE_INFINITY
        }
      }
      movedToPrimary.add(reader)
      return undefined
    },

    /** `behind_seconds`: how old what it has is at most. Null: nobody knows. */
    stats(): { usable: boolean; behind_seconds: number | null } {
      const seconds = Math.round((performance.now() - completeUntil) / 100) / 10
      return { usable: isUsable(), behind_seconds: Number.isFinite(seconds) ? seconds : null }
    },

    async close(): Promise<void> {
      await poller.stop()
      await pool.end()
    }
  }
}

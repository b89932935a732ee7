import type pg from 'pg'
import type { Timeouts } from './connection-settings.ts'
import { classifyFailure } from './failures.ts'
import type { GateSettings } from './gate-query.ts'
import { queryOnPool } from './pool-query.ts'
import { UnsafeRole } from './role-check.ts'
import { type Statement, valuesOf } from './statement.ts'

const intervalMs = 1000
export const staleAfterMs = 10_000

/** Where the primary's log ended, and when it was asked. */
type PrimaryPosition = { position: number; at: number }

export type Replica = ReturnType<typeof createReplica>

/**
 * A copy of the database that may be a little behind, for the long reads that are marked for it (`Statement.replica`). Nothing
 * that decides, and nothing in which a client looks for its own change, is asked here.
 *
 * It is used while it is known to have all that the primary had at most ten seconds ago. That is measured by positions in the
 * log and not by times of day: a replica that has lost its primary looks as quiet as one whose primary has nothing to say.
 */
export function createReplica({
  pool,
  inlineTimeouts,
  primaryPosition,
  onChange
}: {
  pool: pg.Pool
  inlineTimeouts: Timeouts | undefined
  primaryPosition: () => Promise<number>
  onChange: (usable: boolean, err?: Error) => void
}) {
  const movedToPrimary = new WeakSet<object>()
  let positions: PrimaryPosition[] = []
  let completeUntil = Number.NEGATIVE_INFINITY
  let timer: NodeJS.Timeout | undefined
  let running: Promise<void> | undefined
  let wasUsable = false
  let closed = false

  const isUsable = () => performance.now() - completeUntil < staleAfterMs

  /** Null: it is a primary by now, whose log is not a copy of ours. */
  async function replayedPosition(): Promise<number | null> {
    // as text, which is all digits whatever the connection thinks of floating point: nothing is carried along here
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

  /** Throws only when the replica must never be used as it is configured. */
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

  function schedule(): void {
    if (closed) return
    timer = setTimeout(() => {
      running = refresh()
        .catch((err) => onChange(false, err))
        .finally(schedule)
    }, intervalMs)
    timer.unref()
  }

  return {
    async start(): Promise<void> {
      await refresh()
      schedule()
    },

    /**
     * Resolves to nothing when the primary is to be asked. Whoever has been sent there stays there (`reader`, a request): the
     * next page of an export must not come from a copy that lacks a part of what came before.
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
          // what takes too long here would there too, and others wait there
          if (failure === 'timeout') throw err
          if (failure === 'connection') completeUntil = Number.NEGATIVE_INFINITY
        }
      }
      movedToPrimary.add(reader)
      return undefined
    },

    async close(): Promise<void> {
      closed = true
      clearTimeout(timer)
      await running
      await pool.end()
    }
  }
}

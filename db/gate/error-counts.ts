import { classifyFailure } from './failures.ts'

/** The classes of SQLSTATE (PostgreSQL, appendix A). Whatever else a server sends counts as `other`. */
const sqlStateClasses = new Set(
  (
    '03 08 09 0A 0B 0F 0L 0P 0Z 20 21 22 23 24 25 26 27 28 2B 2D 2F 34 38 39 3B 3D 3F 40 42 44 ' +
    '53 54 55 57 58 72 AG F0 HV P0 XX'
  ).split(' ')
)

/**
 * The class of a failed query: the first two characters of its SQLSTATE, or what happened where PostgreSQL said nothing.
 * Undefined for an error that the database has nothing to do with.
 */
export function errorClass(err: unknown): string | undefined {
  const failure = classifyFailure(err)
  const { code } = (err ?? {}) as { code?: unknown }
  if (typeof code === 'string' && /^[0-9A-Z]{5}$/.test(code)) {
    const sqlClass = code.slice(0, 2)
    if (sqlStateClasses.has(sqlClass)) return sqlClass
    // an error code of the system can have five letters too, such as EPIPE
    if (failure === undefined) return 'other'
  }
  return failure
}

/** Counts failed queries by class. A query that succeeds costs nothing here. */
export function createErrorCounts() {
  const counts = new Map<string, number>()
  return {
    count(err: unknown): void {
      const name = errorClass(err)
      if (name !== undefined) counts.set(name, (counts.get(name) ?? 0) + 1)
    },
    byClass: (): ReadonlyMap<string, number> => counts
  }
}

import pg from 'pg'
import { ConnectFailure, isStalePlan, UnreplicatedCommit } from './failures.ts'
import type { ReadChange } from './memory.ts'
import { socketOf } from './pg-internals.ts'

/**
 * Rejects with ConnectFailure when the connection can't be opened, so that callers can tell this from a later failure.
 */
export class Connection extends pg.Client {
  // pg's pool passes a callback, all others await a promise
  override connect(...given: unknown[]): never {
    const connect = super.connect as unknown as (callback?: (err: Error | null) => void) => unknown
    const [callback] = given as [((err: Error | null) => void)?]
    if (callback) return connect.call(this, (err) => callback(err && new ConnectFailure(err))) as never
    const connected = connect.call(this) as Promise<void>
    return connected.catch((err) => {
      throw new ConnectFailure(err)
    }) as never
  }
}

/** How often a text is sent without a name before it gets one. */
const usesBeforeName = 4
/** The most texts with a name. Each connection keeps a plan for each of them. */
export const maxNames = 500
/** The most texts whose uses are counted. A longer text than `maxLength` characters gets no name, and is not counted. */
const maxCounted = 1_000
const maxLength = 10_000

/**
 * Names for the texts of transactions. PostgreSQL parses and plans a statement with a name once a connection, and any other
 * one at each use, which costs it as much as to run it.
 */
export function createStatementNames() {
  const names = new Map<string, string>()
  const uses = new Map<string, number>()
  let generation = 0

  return {
    find(text: string): string | undefined {
      const known = names.get(text)
      if (known !== undefined || names.size === maxNames || text.length > maxLength) return known
      const used = uses.get(text) ?? 0
      if (used < usesBeforeName) {
        if (uses.size === maxCounted) uses.clear()
        uses.set(text, used + 1)
        return undefined
      }
      uses.delete(text)
      const name = `transaction_${generation}_${names.size}`
      names.set(text, name)
      return name
    },

    /** Gives all texts other names, because a change of the schema has made the plan of this one stale. */
    renew(name: string): void {
      if (!name.startsWith(`transaction_${generation}_`)) return
      generation++
      names.clear()
    }
  }
}

export type StatementNames = ReturnType<typeof createStatementNames>

/** The function of PostgreSQL whose only warnings say that a commit no longer waits for a synchronous standby. */
const standbyWait = 'SyncRepWaitForLSN'

/**
 * A connection of the pool. Sends the texts of transactions as named statements, if it is given names.
 *
 * When a query exceeds pg's `query_timeout`, it closes its socket. pg itself only stops waiting, and a rollback on the same
 * connection would wait for another timeout.
 *
 * When somebody cancels the wait of a commit for a synchronous standby, PostgreSQL answers with a warning and with success. The
 * standby may lack that commit, and a failover may undo it. So the query rejects with UnreplicatedCommit, and the socket is
 * closed.
 */
export class PooledConnection extends Connection {
  readonly #names: StatementNames | undefined
  #unreplicated = false

  constructor(config?: pg.ClientConfig & { statementNames?: StatementNames }) {
    super(config)
    this.#names = config?.statementNames
    this.on('notice', ({ routine }) => {
      if (routine === standbyWait) this.#unreplicated = true
    })
  }

  // stands for the many overloads in pg's types
  override query(...args: unknown[]): never {
    const [text, values] = args
    const repeats = typeof text === 'string' && Array.isArray(values) && values.length > 0
    const name = repeats ? this.#names?.find(text) : undefined
    const given = name === undefined ? args : [{ name, text, values }]
    const result: unknown = (super.query as (...args: unknown[]) => unknown)(...given)
    if (!(result instanceof Promise)) return result as never
    return result.then(
      (value) => {
        this.requireReplicated()
        return value
      },
      (err: Error) => {
        if (err.message === 'Query read timeout') socketOf(this).destroy()
        if (name !== undefined && isStalePlan(err)) this.#names?.renew(name)
        throw err
      }
    ) as never
  }

  /** Throws UnreplicatedCommit. For a query object, which pg tells of its end by a callback. */
  requireReplicated(): void {
    if (!this.#unreplicated) return
    socketOf(this).destroy()
    throw new UnreplicatedCommit()
  }
}

/** The server and the database that a URL leads to, as pg reads it. */
export function placeOf(url: string): string {
  const { host, port, database } = new pg.Client({ connectionString: url })
  return JSON.stringify([host, port, database])
}

/** The code of the messages by which `note_change` tells the connection of its changes. */
const noteCode = 'AG001'

/**
 * Calls `onChange` with each change that a connection of the pool has written and that remembered rows can show: after the
 * commit, when the connection is released, before the caller goes on. Also for changes that were rolled back.
 *
 * PostgreSQL tells of them by messages beside the results (db/migrations/0030_changes.ts), which cost no round trip.
 */
export function tellChanges(pool: pg.Pool, onChange: (change: ReadChange) => void): void {
  const written = new WeakMap<pg.ClientBase, ReadChange[]>()
  pool.on('connect', (client) => {
    client.on('notice', (notice) => {
      if (notice.code !== noteCode) return
      const [kind, tenant_id, subject] = String(notice.message).split(' ') as [ReadChange['kind'], string, string]
      written.set(client, [...(written.get(client) ?? []), { kind, tenant_id, subject }])
    })
  })
  pool.on('release', (_err, client) => {
    const changes = written.get(client)
    if (!changes) return
    written.delete(client)
    for (const change of changes) onChange(change)
  })
}

import pg from 'pg'
import { ConnectFailure } from './failures.ts'
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

/**
 * Closes its socket when a query exceeds pg's `query_timeout`. pg itself only stops waiting, and a rollback on the same
 * connection would wait for another timeout.
 */
export class TimeoutClosingClient extends Connection {
  // stands for the many overloads in pg's types
  override query(...args: unknown[]): never {
    const result: unknown = (super.query as (...args: unknown[]) => unknown)(...args)
    if (result instanceof Promise) {
      result.catch((err: Error) => {
        if (err.message === 'Query read timeout') socketOf(this).destroy()
      })
    }
    return result as never
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

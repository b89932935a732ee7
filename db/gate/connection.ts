import pg from 'pg'
import { ConnectFailure } from './failures.ts'
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

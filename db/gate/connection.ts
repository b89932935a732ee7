import pg from 'pg'
import { ConnectFailure } from './failures.ts'

/** A connection whose failure to be made is told from what fails on it later. */
export class Connection extends pg.Client {
  // a promise, or a callback as pg's pool has it
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
 * Ends its connection when a query got no answer in time. pg only stops waiting; a rollback on the same connection would wait
 * as long again.
 */
export class TimeoutClosingClient extends Connection {
  // one of many signatures; pg's types name them all
  override query(...args: unknown[]): never {
    const result: unknown = (super.query as (...args: unknown[]) => unknown)(...args)
    if (result instanceof Promise) {
      result.catch((err: Error) => {
        if (err.message !== 'Query read timeout') return
        ;(this as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy()
      })
    }
    return result as never
  }
}

import {
  type DatabaseConnection,
  PostgresDialect,
  type PostgresDialectConfig,
  PostgresDriver,
  type TransactionSettings
} from 'kysely'
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
export class ImpatientClient extends Connection {
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

/**
 * Kysely gives a connection back to the pool when its BEGIN got no answer. Should the BEGIN arrive later after all, whoever
 * gets the connection next is told that writes are done which never commit. A rollback that fails too discards the connection.
 */
class CarefulDriver extends PostgresDriver {
  override async beginTransaction(connection: DatabaseConnection, settings: TransactionSettings): Promise<void> {
    try {
      await super.beginTransaction(connection, settings)
    } catch (err) {
      await super.rollbackTransaction(connection as never).catch(() => {})
      throw err
    }
  }
}

export class PoolDialect extends PostgresDialect {
  readonly #config: PostgresDialectConfig
  constructor(config: PostgresDialectConfig) {
    super(config)
    this.#config = config
  }
  override createDriver(): PostgresDriver {
    return new CarefulDriver(this.#config)
  }
}

import {
  type DatabaseConnection,
  PostgresDialect,
  type PostgresDialectConfig,
  PostgresDriver,
  type TransactionSettings
} from 'kysely'

/**
 * Kysely gives a connection back to the pool when its BEGIN got no answer. Should the BEGIN arrive later after all, whoever
 * gets the connection next is told that writes are done which never commit. A rollback that fails too discards the connection.
 */
class RollbackDriver extends PostgresDriver {
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
    return new RollbackDriver(this.#config)
  }
}

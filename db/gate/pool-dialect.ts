import {
  type DatabaseConnection,
  PostgresDialect,
  type PostgresDialectConfig,
  PostgresDriver,
  type TransactionSettings
} from 'kysely'

/**
 * Rolls back when BEGIN fails, before the connection returns to the pool. Kysely alone would return a connection whose BEGIN
 * timed out. If PostgreSQL still ran that BEGIN later, the connection's next user would see writes succeed that never
 * commit. When the rollback fails as well, the connection is discarded.
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

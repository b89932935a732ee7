import type { FastifyInstance, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { Kysely } from 'kysely'
import pg from 'pg'
import { createStatementNames, PooledConnection, placeOf, tellChanges } from '../../db/gate/connection.ts'
import { connectionTo, type Timeouts } from '../../db/gate/connection-settings.ts'
import { createRenewablePipeline, createRenewablePool } from '../../db/gate/connections.ts'
import { createTenantGate, type PipelineStats, type TenantGate, type TenantTransaction } from '../../db/gate/gate.ts'
import { prepareGate, type RequestFacts, type Scope, systemScope } from '../../db/gate/gate-query.ts'
import { createPipeline, keyedTimeouts } from '../../db/gate/pipeline.ts'
import { PoolDialect } from '../../db/gate/pool-dialect.ts'
import { createReplica, type Replica } from '../../db/gate/replica.ts'
import { refuseUnsafeRole } from '../../db/gate/role-check.ts'
import { connectWhenUp } from '../../db/gate/start-up.ts'
import { isRemembered, type RememberedStatement, type Statement } from '../../db/gate/statement.ts'
import type { SharedTables, TenantTables } from '../../db/gate/tables.ts'
import { checkSchema } from '../../db/migrate.ts'
import { walPosition } from '../../db/queries/directory.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** The connection pool. Tenant tables are reached through the tenant gate. */
    db: Kysely<SharedTables>
    /** The tenant gate, for work without a request. Routes use `tenantQuery` and `withTenant` of their request. */
    gate: TenantGate
    /** The read replica, if there is one. Only its state: reads go there by `tenantQuery`. */
    replica: Pick<Replica, 'stats'> | undefined
  }
  interface FastifyRequest {
    /**
     * Runs one statement as the signed-in user in the token's tenant, in one network flush. Without a token, `scope`
     * names the tenant and the user: ones that the server has verified or created itself, never input.
     *
     * A remembered statement may return its rows at once, and may be answered from memory, where no scope is named.
     */
    tenantQuery<Values extends object, Row>(
      statement: RememberedStatement<Values, Row>,
      values: Values,
      scope?: Scope
    ): Row[] | Promise<Row[]>
    tenantQuery<Values extends object, Row>(
      statement: Statement<Values, Row>,
      values: Values,
      scope?: Scope
    ): Promise<Row[]>
    /** Runs a transaction under the same rules. Do nothing but queries inside. */
    withTenant<T>(work: (trx: TenantTransaction) => Promise<T>, scope?: Scope): Promise<T>
  }
}

export const pipelineCount = 2
export const replicaPool = 4
export const acquireTimeoutMs = 2000
export const idleTimeoutMs = 60_000
export const queryTimeoutMs = 4000
/**
 * The timeouts that the server enforces on connections of the pool. `queryTimeoutMs` is for a server that is silent.
 */
const timeouts: Timeouts = {
  statement_timeout: 3000,
  lock_timeout: 2000,
  idle_in_transaction_session_timeout: 10_000
}

/**
 * Connects to PostgreSQL. Refuses to start as a role that bypasses row security, or with a schema of an incompatible
 * version.
 */
export default fp(
  async (app) => {
    const { databaseUrl, databaseReplicaUrl, databasePool } = app.config
    if (!databaseUrl) throw new Error('there is no database to connect to')
    // a pooler in transaction mode refuses start-up options, and does not keep prepared statements
    const pooled = app.config.databasePooler === 'transaction'
    const inlineTimeouts = pooled ? { all: timeouts, keyed: keyedTimeouts } : undefined
    const statementNames = pooled ? undefined : createStatementNames()
    const log = (err: Error, text: string) => app.log.warn({ err }, text)

    function openPool(url: string, max: number, onConnect: (client: pg.ClientBase) => Promise<void>) {
      const pool = new pg.Pool({
        ...connectionTo(url, pooled ? undefined : timeouts),
        max,
        connectionTimeoutMillis: acquireTimeoutMs,
        idleTimeoutMillis: idleTimeoutMs,
        keepAlive: true,
        application_name: 'aggios-pool',
        query_timeout: queryTimeoutMs,
        Client: PooledConnection,
        ...{ statementNames },
        async onConnect(client) {
          await onConnect(client)
          if (!pooled) await prepareGate(client)
        }
      })
      pool.on('error', (err) => log(err, 'idle database connection lost'))
      tellChanges(pool, (change) => app.readMemory.wrote(change))
      // for connections in use, because the pool listens to idle ones only
      pool.on('connect', (client) => client.on('error', (err) => log(err, 'database connection lost')))
      return pool
    }

    const openPipeline = (url: string) =>
      createPipeline(url, pipelineCount, (err) => log(err, 'pipelined database connection lost'))
    const openReplica = (url: string) =>
      openPool(url, replicaPool, (client) => refuseUnsafeRole(client, 'DATABASE_REPLICA_URL'))

    const pool = createRenewablePool(openPool(databaseUrl, databasePool, async () => {}))
    const pipeline = pooled ? undefined : createRenewablePipeline(openPipeline(databaseUrl))
    // one pool with two types: only the gate's type has the tables of tenants
    const { traceStatement } = app
    const db = new Kysely<TenantTables>({
      dialect: new PoolDialect({ pool }),
      ...(traceStatement && { log: traceStatement })
    })
    const gate = createTenantGate(db, pool, pipeline, inlineTimeouts)
    const copies = databaseReplicaUrl === undefined ? undefined : createRenewablePool(openReplica(databaseReplicaUrl))
    const replica =
      copies === undefined
        ? undefined
        : createReplica({
            pool: copies,
            inlineTimeouts: inlineTimeouts?.all,
            async primaryPosition() {
              const [row] = await gate.query(systemScope, walPosition, {})
              return row?.position ?? Number.POSITIVE_INFINITY
            },
            onChange: (usable, err) =>
              usable ? app.log.info('the replica is used') : app.log.warn({ err }, 'the replica is away or behind')
          })

    app.addHook('onClose', async () => {
      await replica?.close()
      await Promise.all([db.destroy(), pipeline?.close()])
    })
    app.secrets.follow(['databaseUrl'], async ({ databaseUrl: url = '' }) => {
      // what is remembered, and transaction ids, are those of one server
      if (placeOf(url) !== placeOf(app.config.databaseUrl ?? '')) {
        throw new Error('DATABASE_URL: only its login and its parameters can change while the process runs')
      }
      const next = openPool(url, databasePool, async () => {})
      await requireUsable(next, 'DATABASE_URL')
      return () => {
        pool.renew(next)
        pipeline?.renew(openPipeline(url))
      }
    })
    app.secrets.follow(['databaseReplicaUrl'], async ({ databaseReplicaUrl: url = '' }) => {
      const next = openReplica(url)
      await requireUsable(next, 'DATABASE_REPLICA_URL')
      return () => copies?.renew(next)
    })
    app.decorate('db', db as unknown as Kysely<SharedTables>)
    app.decorate('gate', gate)
    app.decorate('replica', replica)
    addMetrics(app, gate)
    function query<Values extends object, Row>(
      request: FastifyRequest,
      statement: Statement<Values, Row>,
      values: Values,
      { tenant_id, user_id }: Scope
    ): Promise<Row[]> {
      const settings = { tenant_id, user_id, request: statement.writes ? factsOf(request) : '' }
      if (!replica || !statement.replica) return gate.query(settings, statement, values)
      return replica
        .query(request, settings, statement, values)
        .then((rows) => rows ?? gate.query(settings, statement, values))
    }

    app.decorateRequest('tenantQuery', function <Values extends object, Row>(
      this: FastifyRequest,
      statement: Statement<Values, Row>,
      values: Values,
      scope?: Scope
    ) {
      const { user } = this
      // what is read about somebody else than the caller decides something, such as who may sign in
      return isRemembered(statement) && !scope
        ? app.readMemory.read(this, { statement, scope: user, values }, () => query(this, statement, values, user))
        : query(this, statement, values, scope ?? user)
    } as FastifyRequest['tenantQuery'])
    app.decorateRequest('withTenant', function (this: FastifyRequest, work, scope = this.user) {
      const { tenant_id, user_id } = scope
      return gate.transaction({ tenant_id, user_id, request: factsOf(this) }, work)
    })

    const client = await connectWhenUp(
      () => pool.connect(),
      (err) => app.log.warn({ err }, 'waiting for the database')
    )
    await refuseUnsafeRole(client, 'DATABASE_URL').finally(() => client.release())
    await gate.transaction(systemScope, (trx) => checkSchema(trx as unknown as Kysely<SharedTables>))
    await replica?.start()
  },
  { name: 'database', dependencies: ['config', 'addresses', 'metrics', 'read-memory'] }
)

/** Connects once by a new login. Ends the pool and rejects when that fails, or leads to an unsafe role. */
async function requireUsable(pool: pg.Pool, setting: string): Promise<void> {
  try {
    const client = await pool.connect()
    await refuseUnsafeRole(client, setting).finally(() => client.release())
  } catch (err) {
    await pool.end()
    throw err
  }
}

function addMetrics({ metrics }: FastifyInstance, gate: TenantGate): void {
  metrics.gauge('aggios_pool_connections', 'Connections of the pool', () => {
    const { total, idle } = gate.stats().pool
    return [
      { labels: { state: 'idle' }, value: idle },
      { labels: { state: 'busy' }, value: total - idle }
    ]
  })
  metrics.gauge('aggios_pool_waiting', 'Who waits for a connection of the pool', () => gate.stats().pool.waiting)
  metrics.gauge(
    'aggios_pipeline_waiting',
    'Keyed reads that wait for a pipelined connection',
    () => gate.stats().waiting
  )
  metrics.counter(
    'aggios_database_errors_total',
    'Statements and transactions that failed, by the class of their SQLSTATE or by what happened',
    () => Object.entries(gate.stats().errors).map(([name, value]) => ({ labels: { class: name }, value }))
  )
  const eachPipeline = (read: (stats: PipelineStats) => number) => () =>
    gate.stats().pipelines.map((stats, i) => ({ labels: { pipeline: String(i + 1) }, value: read(stats) }))
  const inFlight = eachPipeline((stats) => stats.in_flight)
  metrics.gauge('aggios_pipeline_in_flight', 'Queries under way on a pipelined connection', inFlight)
  const connected = eachPipeline((stats) => Number(stats.connected))
  metrics.gauge('aggios_pipeline_connected', 'Whether a pipelined connection is open', connected)
  const connects = eachPipeline((stats) => stats.connects)
  metrics.counter('aggios_pipeline_connects_total', 'How often a pipelined connection was opened', connects)
}

/** The request's id, address and user agent for the audit log, as bounded text. */
function factsOf(request: FastifyRequest): RequestFacts {
  return JSON.stringify({
    id: request.id,
    // unknown when the connection is gone
    ip: request.address ?? null,
    user_agent: request.headers['user-agent']?.slice(0, 512)
  })
}

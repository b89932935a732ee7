import { isIP } from 'node:net'
import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { Kysely, sql } from 'kysely'
import pg from 'pg'
import { createTenantGate, type TenantGate, type TenantTransaction } from '../db/gate.ts'
import { prepareGate, type RequestFacts, type Scope } from '../db/gate-query.ts'
import { findMissingMigrations } from '../db/migrate.ts'
import { createPipeline } from '../db/pipeline.ts'
import { ImpatientClient, PoolDialect } from '../db/pool-dialect.ts'
import type { Statement } from '../db/statement.ts'
import type { SharedTables, TenantTables } from '../db/tables.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** The connection pool. Tenant tables are reached through the tenant gate. */
    db: Kysely<SharedTables>
    /** For what no request stands behind; a route uses the two doors of its request. */
    gate: TenantGate
  }
  interface FastifyRequest {
    /**
     * One statement as the signed-in user in the token's tenant, in one network flush. `scope` names another tenant or user
     * where there is no token: one that the server has verified or created itself, never input.
     */
    tenantQuery<Values extends object, Row>(
      statement: Statement<Values, Row>,
      values: Values,
      scope?: Scope
    ): Promise<Row[]>
    /** A transaction under the same rules. Only queries belong inside. */
    withTenant<T>(work: (trx: TenantTransaction) => Promise<T>, scope?: Scope): Promise<T>
  }
}

const pipelineCount = 2
const acquireTimeoutMs = 2000

/** Connects to PostgreSQL, and refuses to start as a role that skips row security or on a schema that is not current. */
export default fp(
  async (app) => {
    const { databaseUrl, databasePool } = app.config
    if (!databaseUrl) throw new Error('there is no database to connect to')
    const pool = new pg.Pool({
      connectionString: databaseUrl,
      max: databasePool,
      connectionTimeoutMillis: acquireTimeoutMs,
      idleTimeoutMillis: 60_000,
      keepAlive: true,
      application_name: 'aggios-pool',
      // the server's own limits; query_timeout is for a server that no longer says anything
      options: '-c statement_timeout=3000 -c lock_timeout=2000 -c idle_in_transaction_session_timeout=10000',
      query_timeout: 4000,
      Client: ImpatientClient,
      onConnect: prepareGate
    })
    pool.on('error', (err) => app.log.warn({ err }, 'idle database connection lost'))
    // one that is lost while somebody holds it: the pool listens to idle ones only
    pool.on('connect', (client) => client.on('error', (err) => app.log.warn({ err }, 'database connection lost')))
    const pipelines = Array.from({ length: pipelineCount }, () =>
      createPipeline(databaseUrl, (err) => app.log.warn({ err }, 'pipelined database connection lost'))
    )
    // one pool under two types: the tables of tenants are in the gate's only
    const db = new Kysely<TenantTables>({ dialect: new PoolDialect({ pool }) })
    const gate = createTenantGate(db, pool, pipelines)

    app.addHook('onClose', async () => {
      await Promise.all([db.destroy(), ...pipelines.map((pipeline) => pipeline.close())])
    })
    app.decorate('db', db as unknown as Kysely<SharedTables>)
    app.decorate('gate', gate)
    app.decorateRequest('tenantQuery', function (this: FastifyRequest, statement, values, scope = this.user) {
      const { tenant_id, user_id } = scope
      return gate.query({ tenant_id, user_id, request: statement.writes ? factsOf(this) : '' }, statement, values)
    })
    app.decorateRequest('withTenant', function (this: FastifyRequest, work, scope = this.user) {
      const { tenant_id, user_id } = scope
      return gate.transaction({ tenant_id, user_id, request: factsOf(this) }, work)
    })

    await refuseUnsafeRole(app.db)
    const missing = await findMissingMigrations(app.db)
    if (missing.length > 0) {
      throw new Error(`the schema lacks ${missing.join(', ')}: set DATABASE_OWNER_URL on one start to migrate`)
    }
  },
  { name: 'database', dependencies: ['config'] }
)

/** Who asked, for the audit log. What a client makes up goes in as text and at a bounded length. */
function factsOf(request: FastifyRequest): RequestFacts {
  // of a connection that is gone nobody knows it any more
  const ip = request.ip?.split('%', 1)[0] ?? ''
  return JSON.stringify({
    id: request.id,
    ip: isIP(ip) ? ip : null,
    user_agent: request.headers['user-agent']?.slice(0, 512)
  })
}

async function refuseUnsafeRole(db: Kysely<SharedTables>): Promise<void> {
  const { rows } = await sql<{ name: string; unsafe: boolean }>`
    select current_user as name, bool_or(
      r.rolsuper or r.rolbypassrls or r.rolcreaterole
      or exists (select from pg_class c where c.relowner = r.oid and c.relnamespace = 'public'::regnamespace)
    ) as unsafe
    from pg_roles r where pg_has_role(current_user, r.oid, 'member')`.execute(db)
  if (rows[0]?.unsafe) {
    throw new Error(`DATABASE_URL connects as ${rows[0].name}, which owns tables or skips row security: use aggios_app`)
  }
}

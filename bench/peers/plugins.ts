import helmet from '@fastify/helmet'
import jwt from '@fastify/jwt'
import rateLimit from '@fastify/rate-limit'
import Fastify from 'fastify'
import metrics from 'fastify-metrics'
import { Redis } from 'ioredis'
import { Kysely, PostgresDialect, sql, type Transaction } from 'kysely'
import pg from 'pg'

/*
 * Fastify with a typical stack of plugins: JWT, rate limit with Redis, helmet, metrics, and Kysely with a transaction
 * for row security. The refresh is the simplest correct one: it locks the session, compares the counter, and increments
 * it.
 */

type Tables = {
  users: {
    id: string
    email: string
    name: string
    avatar_url: string | null
    email_verified_at: Date | null
    mfa_enabled_at: Date | null
    created_at: Date
    updated_at: Date
  }
  memberships: { tenant_id: string; user_id: string; role: string; updated_at: Date }
  sessions: { tenant_id: string; id: string; user_id: string; counter: number; rotated_at: Date }
}
type Claims = { tenant_id: string; user_id: string; sid: string; counter: number }
type Database = Transaction<Tables>

const { DATABASE_URL, JWT_SECRET, PORT, REDIS_URL } = process.env
const pool = new pg.Pool({ connectionString: DATABASE_URL })
const db = new Kysely<Tables>({ dialect: new PostgresDialect({ pool }) })
const app = Fastify({ logger: true })

await app.register(helmet)
await app.register(jwt, { secret: JWT_SECRET as string })
await app.register(rateLimit, {
  max: 1e9,
  timeWindow: '1 minute',
  ...(REDIS_URL && { redis: new Redis(REDIS_URL) })
})
await app.register(metrics.default, { endpoint: '/metrics' })

function inTenant<T>(tenantId: string, userId: string, work: (trx: Database) => Promise<T>): Promise<T> {
  return db.transaction().execute(async (trx) => {
    await sql`select set_config('app.tenant_id', ${tenantId}, true), set_config('app.user_id', ${userId}, true)`.execute(
      trx
    )
    return work(trx)
  })
}

app.get('/users/me', { onRequest: (request) => request.jwtVerify() }, (request) => {
  const { tenant_id, user_id } = request.user as Claims
  return inTenant(tenant_id, user_id, (trx) =>
    trx
      .selectFrom('memberships as m')
      .innerJoin('users as u', 'u.id', 'm.user_id')
      .where('m.tenant_id', '=', tenant_id)
      .where('m.user_id', '=', user_id)
      .select(['u.id', 'u.email', 'u.name', 'u.avatar_url', 'm.tenant_id', 'm.role', 'u.created_at'])
      .select(sql<boolean>`u.email_verified_at is not null`.as('email_verified'))
      .select(sql<boolean>`u.mfa_enabled_at is not null`.as('mfa_enabled'))
      .select(sql<Date>`greatest(u.updated_at, m.updated_at)`.as('updated_at'))
      .executeTakeFirst()
  )
})

/** Exchanges a refresh token, which is a JWT here, for new tokens. */
app.post<{ Body: { refresh_token: string } }>('/refresh', async (request, reply) => {
  const { tenant_id, user_id, sid, counter } = app.jwt.verify<Claims>(request.body.refresh_token)
  const current = await inTenant(tenant_id, user_id, async (trx) => {
    const session = await trx
      .selectFrom('sessions')
      .where('tenant_id', '=', tenant_id)
      .where('id', '=', sid)
      .selectAll()
      .forUpdate()
      .executeTakeFirst()
    if (session?.counter !== counter) return false
    const user = await trx.selectFrom('users').where('id', '=', user_id).select(['id', 'email']).executeTakeFirst()
    if (!user) return false
    await trx
      .updateTable('sessions')
      .set({ counter: counter + 1, rotated_at: new Date() })
      .where('tenant_id', '=', tenant_id)
      .where('id', '=', sid)
      .execute()
    return true
  })
  if (!current) return reply.code(401).send()
  const next = { tenant_id, user_id, sid, counter: counter + 1 }
  return {
    access_token: app.jwt.sign(next, { expiresIn: '1d' }),
    refresh_token: app.jwt.sign(next, { expiresIn: '7d' })
  }
})

await app.listen({ host: '127.0.0.1', port: Number(PORT) })

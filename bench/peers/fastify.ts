import Fastify from 'fastify'
import pg from 'pg'
import { type UserKey, userText } from './query.ts'

/* Bare Fastify and pg: one query, nothing else. STATEMENT names it, so that PostgreSQL keeps the plan. */

const { DATABASE_URL, PORT, STATEMENT } = process.env
const pool = new pg.Pool({ connectionString: DATABASE_URL })
const app = Fastify()

app.get<{ Params: UserKey }>('/users/:tenant_id/:user_id', async ({ params }) => {
  const values = [params.tenant_id, params.user_id]
  const query = STATEMENT ? { name: STATEMENT, text: userText, values } : { text: userText, values }
  const { rows } = await pool.query(query)
  return rows[0]
})

await app.listen({ host: '127.0.0.1', port: Number(PORT) })

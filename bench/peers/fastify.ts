import Fastify from 'fastify'
import pg from 'pg'
import { membersText, type UserKey, userText } from './query.ts'

/* Bare Fastify and pg, one query per route. With NAMED, PostgreSQL prepares the queries and keeps their plans. */

const { DATABASE_URL, PORT, NAMED } = process.env
const pool = new pg.Pool({ connectionString: DATABASE_URL })
const app = Fastify()

const queryFor = (name: string, text: string, values: string[]) => (NAMED ? { name, text, values } : { text, values })

app.get<{ Params: UserKey }>('/users/:tenant_id/:user_id', async ({ params }) => {
  const { rows } = await pool.query(queryFor('user', userText, [params.tenant_id, params.user_id]))
  return rows[0]
})

app.get<{ Params: Pick<UserKey, 'tenant_id'> }>('/members/:tenant_id', async ({ params }) => {
  const { rows } = await pool.query(queryFor('members', membersText, [params.tenant_id]))
  return { data: rows }
})

await app.listen({ host: '127.0.0.1', port: Number(PORT) })

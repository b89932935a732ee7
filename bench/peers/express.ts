import express from 'express'
import pg from 'pg'
import { userText } from './query.ts'

const { DATABASE_URL, PORT } = process.env
const pool = new pg.Pool({ connectionString: DATABASE_URL })
const app = express()

app.get('/users/:tenant_id/:user_id', async (request, response) => {
  const { tenant_id, user_id } = request.params
  const { rows } = await pool.query({ name: 'user', text: userText, values: [tenant_id, user_id] })
  response.json(rows[0])
})

app.listen(Number(PORT), '127.0.0.1')

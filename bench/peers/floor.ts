import Fastify from 'fastify'

/* Fastify that answers a constant of the size of a person: the least that HTTP on Node costs. */

const { PORT } = process.env
const constant = { id: '019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e', text: 'a constant '.repeat(24) }
const app = Fastify()
app.get('/users/:tenant_id/:user_id', async () => constant)
await app.listen({ host: '127.0.0.1', port: Number(PORT) })

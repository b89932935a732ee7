import t, { type Test } from 'tap'
import { createTenant, post, startApp, type Tenant } from './harness.ts'
import { me } from './requests.ts'

/*
 * API keys: their life, what they may do and from where, and what ends them.
 */

const input = { name: 'Accounting', role: 'member', permissions: ['files:read', 'tenant:read'] }
const make = async (tenant: Tenant, more: object = {}) => {
  const reply = await tenant.send(post('/api-keys', { ...input, ...more }))
  if (reply.statusCode !== 201) throw new Error(reply.body)
  return reply.json()
}
const path = (id: string, rest = '') => `/api/v1/api-keys/${id}${rest}`
const rotate = (tenant: Tenant, id: string, overlap_seconds?: number) =>
  tenant.send(post(`/api-keys/${id}/rotate`, { overlap_seconds }))

async function start(t: Test, env = {}) {
  const app = await startApp(t, env)
  return { app, acme: await createTenant(app, 'acme'), rival: await createTenant(app, 'rival') }
}

t.test('the life of a key', async (t) => {
  const { acme, rival } = await start(t)
  const made = await make(acme)
  t.match(made, { ...input, cidrs: [], created_by: acme.owner.id, expires_at: null, last_used_at: null })
  t.match(made.key, /^agg_[0-9A-Za-z]{82}$/)
  const { key, id, ...shown } = made
  t.equal((await acme.with(key, '/api/v1/tenant')).statusCode, 200)
  t.equal((await acme.with(key, '/api/v1/files')).statusCode, 200)
  t.match((await acme.with(key, '/api/v1/members')).json(), { status: 403, code: 'forbidden' })
  t.match((await acme.with(key, me)).json(), { status: 403, code: 'forbidden' })
  t.match((await rival.with(key, '/api/v1/tenant')).json(), { status: 403, code: 'tenant_mismatch' })
  t.match((await acme.send(path(id))).json(), { id, ...shown })
  const rotated = await rotate(acme, id, 60)
  t.equal(rotated.statusCode, 201, rotated.body)
  t.equal((await acme.with(key, '/api/v1/tenant')).statusCode, 200, 'old')
  t.equal((await acme.with(rotated.json().key, '/api/v1/tenant')).statusCode, 200, 'new')
  t.equal((await acme.send({ method: 'DELETE', url: path(id) })).statusCode, 204)
  t.equal((await acme.with(key, '/api/v1/tenant')).statusCode, 401, 'old')
  t.equal((await acme.with(rotated.json().key, '/api/v1/tenant')).statusCode, 401, 'new')
})

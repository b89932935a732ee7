import t from 'tap'
import { policies } from './authz-policy.ts'
import { createWorld } from './isolation.ts'

/*
 * HEAD is GET without the body (RFC 9110, 9.3.2): the same refusals and headers, no effect, and no work for a body that nobody gets.
 */

t.test('HEAD of every operation that is read', async (t) => {
  const world = await createWorld(t)
  const { app, a, sql } = world
  const tables = [
    'audit_events',
    'files',
    'invitations',
    'memberships',
    'outbox',
    'sessions',
    'tenants',
    'uploads',
    'users'
  ]
  const sums = tables.map((name) => `(select md5(string_agg(r::text, '' order by r::text)) from ${name} r) as ${name}`)
  const rows = async () => (await sql.query(`select ${sums.join(', ')}`)).rows
  const operations = world.operations.filter(({ method }) => method === 'GET')
  t.ok(operations.length > 20, `${operations.length} operations`)
  for (const { id, path, access } of operations) {
    if (access === 'internal') continue
    const policy = policies[id]
    if (!policy) throw new Error(`${id} has no policy`)
    const { params = {}, query, headers, caller } = await policy.make(world, a, 'owner')
    const filled = path.replaceAll(/\{(\w+)\}/g, (_, name) => encodeURIComponent(params[name] ?? ''))
    const url = query ? `${filled}?${new URLSearchParams(query)}` : filled
    const own = { ...headers, host: a.host, ...(caller && { authorization: `Bearer ${caller.token}` }) }
    const before = await rows()
    const head = await app.inject({ method: 'HEAD', url, headers: own })
    t.equal(head.statusCode, policy.status, id)
    t.equal(head.body, '', id)
    t.strictSame(await rows(), before, `${id} changes nothing`)
    const get = await app.inject({ method: 'GET', url, headers: own })
    for (const name of ['content-type', 'content-disposition', 'cache-control', 'accept-ranges']) {
      t.equal(head.headers[name], get.headers[name], `${id}: ${name}`)
    }
    const refused = await app.inject({ method: 'HEAD', url, headers: { host: a.host } })
    t.equal(refused.statusCode, access === 'public' ? policy.status : 401, `${id} as nobody`)
  }
})

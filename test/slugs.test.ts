import t from 'tap'
import { createTenant, password, post, send, startApp } from './harness.ts'

t.test('a slug', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const { email } = acme.owner
  const foundings = (slug: string) => [
    send(
      app,
      'localhost',
      post('/auth/register', { tenant: { name: 'A', slug }, name: 'A', email: 'a@a.example', password })
    ),
    acme.send(post('/tenants', { name: 'A', slug }))
  ]

  t.test('that names an agency ignores case, as its host does', async (t) => {
    for (const tenant of ['acme', 'Acme', 'ACME']) {
      const signedIn = await send(app, 'localhost', post('/auth/login', { email, password, tenant }))
      t.equal(signedIn.statusCode, 200, `sign-in to ${tenant}`)
      t.equal((await acme.send(post('/auth/switch', { tenant }))).statusCode, 200, `switch to ${tenant}`)
      t.equal((await send(app, `${tenant}.localhost`, '/api/v1/health/live')).statusCode, 200)
    }
    t.equal((await send(app, 'localhost', post('/auth/login', { email, password, tenant: 'ACMF' }))).statusCode, 401)
    t.equal((await acme.send(post('/auth/switch', { tenant: 'ACMF' }))).statusCode, 404)
  })
  t.test('that is reserved is not said to be taken', async (t) => {
    for (const reply of await Promise.all(foundings('admin'))) {
      t.match(reply.json(), { status: 409, code: 'slug_taken', detail: /reserved/ })
      t.notMatch(reply.body, /is taken|another agency/)
    }
    for (const reply of await Promise.all(foundings('acme'))) {
      t.match(reply.json(), { status: 409, code: 'slug_taken', detail: 'another agency has this slug' })
    }
  })
  t.test('confirms that an agency is deleted, in any case too', async (t) => {
    const remove = (slug: string) => acme.send({ ...post('/tenant', { slug }), method: 'DELETE' })
    t.match((await remove('acmf')).json(), {
      code: 'validation_failed',
      detail: "body/slug must be this agency's slug"
    })
    t.equal((await remove('Acme')).statusCode, 202)
  })
})

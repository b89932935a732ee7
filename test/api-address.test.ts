import t, { type Test } from 'tap'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { InvalidConfiguration } from '../src/config/invalid-configuration.ts'
import { createTestDatabase, send, startApp, startServer, testEnvironment } from './harness.ts'

/*
 * Providers send people back to API_URL, so the server does not start with an address that it would refuse.
 */

const common = { JWT_SECRET: 'a secret of the tests that is long enough', NODE_ENV: 'production' }
const own = { BASE_DOMAIN: 'aggios.example', EXTRA_HOSTS: 'backend, *.internal.example' }

/** What is wrong with the address. */
function refusedIn(env: Environment): string[] {
  try {
    readConfig({ ...common, ...env })
    return []
  } catch (err) {
    if (!(err instanceof InvalidConfiguration)) throw err
    return err.problems.filter((problem) => problem.startsWith('API_URL'))
  }
}

t.test('a host that is served for all agencies is accepted', async (t) => {
  for (const API_URL of [
    'https://aggios.example',
    'https://api.aggios.example',
    'https://API.aggios.example:8443',
    'https://backend:8080',
    'https://one.internal.example'
  ]) {
    t.strictSame(refusedIn({ ...own, API_URL }), [], API_URL)
  }
  for (const API_URL of ['http://localhost:8080', 'http://127.0.0.1:8080', 'http://[::1]:8080']) {
    t.strictSame(refusedIn({ ...own, NODE_ENV: 'development', API_URL }), [], `${API_URL}, in development`)
  }
  t.strictSame(refusedIn(own), [], 'none is needed')
})

t.test('any other host is an error of the configuration, by its name', async (t) => {
  for (const API_URL of [
    'https://aggios.other',
    'https://notaggios.example',
    'https://acme.aggios.example',
    'https://a.b.aggios.example',
    'https://internal.example',
    'https://192.0.2.1',
    'https://localhost'
  ]) {
    const [problem, ...others] = refusedIn({ ...own, API_URL })
    t.match(problem, /^API_URL: .+ is not a host on which this server serves all agencies/, API_URL)
    t.strictSame(others, [])
  }
})

t.test('what is accepted is answered, and what is refused is not started with', async (t: Test) => {
  const app = await startApp(t, { ...own, API_URL: 'https://one.internal.example' })
  const served = await send(app, 'one.internal.example', '/api/v1/auth/providers')
  t.equal(served.statusCode, 200)
  t.match((await send(app, 'aggios.other', '/api/v1/auth/providers')).json(), { status: 421, code: 'unknown_host' })
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { ...own, API_URL: 'https://aggios.other' })
  const server = await startServer(t, env, { ready: false })
  t.equal((await server.exited).code, 78)
  t.match(server.output(), 'API_URL: aggios.other is not a host')
})

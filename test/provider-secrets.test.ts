import t from 'tap'
import { buildApp } from '../src/app.ts'
import { readConfig } from '../src/config/config.ts'
import { allRows, createTenant, startApp, testEnvironment } from './harness.ts'
import {
  addProvider,
  clientSecret,
  createBrowser,
  createVerifier,
  startScriptedProvider,
  startUrl
} from './providers.ts'

const before = 'a pepper of the tests'
const after = 'another pepper of the tests'

t.test('the secret of an identity provider', async (t) => {
  const at = await startScriptedProvider(t)
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const key = await addProvider(acme, at.issuer)
  const stored = async () => {
    const [row] = await allRows(app.database, 'select client_secret, key_id from identity_providers')
    return row as { client_secret: Buffer; key_id: string }
  }
  const first = await stored()
  const startWith = async (pepper: string) => {
    const other = buildApp(readConfig(testEnvironment(app.database, { PASSWORD_PEPPER: pepper })))
    t.teardown(() => other.close())
    await other.ready()
  }

  t.test('is stored encrypted', async (t) => {
    t.notOk(first.client_secret.includes(clientSecret))
  })
  t.test('is encrypted anew with a new pepper when it is used', async (t) => {
    const rotated = await startApp(t, { PASSWORD_PEPPER: `${after},${before}` }, app.database)
    const begin = () => createBrowser(rotated).get(startUrl(key, 'acme', createVerifier().code_challenge))
    t.equal((await begin()).statusCode, 302)
    const second = await stored()
    t.not(second.key_id, first.key_id)
    t.notOk(second.client_secret.equals(first.client_secret))
    t.equal((await begin()).statusCode, 302)
    t.strictSame(await stored(), second, 'once')
  })
  t.test('needs its pepper at the start', async (t) => {
    await allRows(app.database, 'update users set password_hash = null, pepper_id = null')
    await t.resolves(startWith(after), 'the older pepper is needed no more')
    await t.rejects(startWith(before), { message: /lacks the pepper of secrets of identity providers/ })
  })
})

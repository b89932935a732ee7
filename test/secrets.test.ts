import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { parse } from 'yaml'
import { readConfig } from '../src/config/config.ts'
import { InvalidConfiguration } from '../src/config/invalid-configuration.ts'
import { createDiskStore } from '../src/files/store/disk.ts'
import { form } from './forms.ts'
import { createTenant, createTestDatabase, post, root, send, startApp, type TestApp } from './harness.ts'
import { sendAuthorization } from './requests.ts'
import { decode, makeToken, otherStrongSecret, strongSecret } from './tokens.ts'

/*
 * Secrets: where they could be read by other users or scripts, how keys are rotated, and how development makes its own.
 */

t.test('nobody but the server reads the folders of the disk store', async (t) => {
  const folder = join(t.testdir(), 'files')
  // as an earlier version made it
  await mkdir(folder, { mode: 0o755 })
  const store = createDiskStore(folder)
  await store.check()
  const app = await startApp(t, { DATA_DIR: t.testdirName })
  const acme = await createTenant(app, 'acme')
  const one = form([{ name: 'file', filename: 'a.txt', content: 'hello' }])
  t.equal((await acme.send({ method: 'POST', url: '/api/v1/files', ...one })).statusCode, 201)
  const folders = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isDirectory())
  t.ok(folders.length >= 2)
  for (const path of [folder, ...folders.map(({ parentPath, name }) => join(parentPath, name))]) {
    t.equal((statSync(path).mode & 0o777).toString(8), '700', path)
  }
})

t.test('the docs page keeps no token beyond the tab', async (t) => {
  const app = await startApp(t)
  const script = await send(app, 'localhost', '/api/v1/docs/static/swagger-initializer.js')
  t.equal(script.statusCode, 200)
  t.match(script.body, '"persistAuthorization":false')
})

t.test('the log of the proxy has no paths, in which tokens of links are', (t) => {
  const { accessLog } = parse(readFileSync(join(root, 'traefik.yml'), 'utf8'), { merge: true })
  t.match(accessLog.fields, {
    names: { RequestPath: 'drop', RequestLine: 'drop' },
    headers: { defaultMode: 'drop' }
  })
  t.end()
})

t.test('secrets are rotated without signing anybody out', async (t) => {
  const database = await createTestDatabase(t)
  const oldSecret = 'the old secret which has served for a year now'
  const newSecret = 'the new secret which nobody has seen before it'
  const run = (secrets: string) => startApp(t, { JWT_SECRET: secrets, REFRESH_GRACE: '0' }, database)
  const kidOf = (token: string) => decode(token).header.kid

  const before = await run(oldSecret)
  const acme = await createTenant(before, 'acme')
  const first = acme.owner.tokens
  for (let count = 0; count < 2; count++) await acme.signIn()
  const cursor = (await acme.send('/api/v1/users/me/sessions?limit=1')).json().next_cursor
  const appended = await run(`${oldSecret}, ${newSecret}`)
  const moved = await run(`${newSecret},${oldSecret}`)
  const dropped = await run(newSecret)
  const refresh = (app: TestApp, token: string) =>
    send(app, 'localhost', post('/auth/refresh', { refresh_token: token }))
  let current = first

  await t.test('appended: the old one signs, and both are believed', async (t) => {
    t.equal((await sendAuthorization(appended, `Bearer ${first.access_token}`)).statusCode, 200)
    current = (await refresh(appended, current.refresh_token)).json()
    t.equal(kidOf(current.access_token), kidOf(first.access_token))
    const early = (await refresh(moved, current.refresh_token)).json()
    t.equal(
      (await sendAuthorization(appended, `Bearer ${early.access_token}`)).statusCode,
      200,
      'what the next deployment signs'
    )
    current = (await refresh(appended, early.refresh_token)).json()
  })
  await t.test('moved first: the new one signs, the old one is believed', async (t) => {
    for (const token of [first.access_token, current.access_token]) {
      t.equal((await sendAuthorization(moved, `Bearer ${token}`)).statusCode, 200)
    }
    current = (await refresh(moved, current.refresh_token)).json()
    t.not(kidOf(current.access_token), kidOf(first.access_token))
    const page = await send(moved, 'localhost', {
      url: `/api/v1/users/me/sessions?limit=1&cursor=${cursor}`,
      headers: { authorization: `Bearer ${current.access_token}` }
    })
    t.equal(page.statusCode, 200, 'a page that was begun goes on')
  })
  await t.test('dropped: what the new one signed is good, what the old one signed is not', async (t) => {
    t.equal((await sendAuthorization(dropped, `Bearer ${current.access_token}`)).statusCode, 200)
    t.equal((await refresh(dropped, current.refresh_token)).statusCode, 200)
    t.match((await sendAuthorization(dropped, `Bearer ${first.access_token}`)).json(), {
      status: 401,
      code: 'invalid_token'
    })
    t.match((await refresh(dropped, first.refresh_token)).json(), { status: 401, code: 'invalid_refresh_token' })
  })
  await t.test('one key under the id of another is refused', async (t) => {
    const { header, claims } = decode(first.access_token)
    t.equal(
      (await sendAuthorization(moved, `Bearer ${makeToken(header, claims, oldSecret)}`)).statusCode,
      200,
      'the control'
    )
    const crossed = makeToken(header, claims, newSecret)
    t.match((await sendAuthorization(moved, `Bearer ${crossed}`)).json(), { status: 401, code: 'invalid_token' })
  })
  await t.test('a key id tells nothing of the key', async (t) => {
    const kid = String(kidOf(first.access_token))
    for (const text of [
      oldSecret,
      Buffer.from(oldSecret).toString('base64url'),
      Buffer.from(oldSecret).toString('hex')
    ]) {
      t.notOk(text.includes(kid))
    }
  })
})

t.test('weak secrets do not start', async (t) => {
  const refuse = (env: Record<string, string>) => {
    try {
      readConfig(env)
      return []
    } catch (err) {
      if (!(err instanceof InvalidConfiguration)) throw err
      return err.problems
    }
  }
  const production = {
    NODE_ENV: 'production',
    DATABASE_URL: 'postgres://app@localhost/x',
    JWT_SECRET: 'x6Jr2mQ9wLk4tZb7VhN1sYc8Ge3Df5Pa',
    PASSWORD_PEPPER: 'Qw8Zx2Lm5Tn9Rb4Kc7Hv1Jf6Gd3Sp0Ya'
  }
  t.strictSame(refuse(production), [], 'the control')
  for (const secret of [
    '',
    'short',
    'a'.repeat(64),
    'x'.repeat(31),
    'change-me-change-me-change-me-change-me',
    `${production.JWT_SECRET},short`
  ]) {
    t.match(refuse({ ...production, JWT_SECRET: secret }), [/^JWT_SECRET: /], secret || 'none')
  }
  t.match(refuse({ JWT_SECRET: 'short' }), [/^JWT_SECRET: /], 'in development too')
  t.notOk(
    refuse({ ...production, JWT_SECRET: 'hunter2hunter2' })
      .join()
      .includes('hunter2'),
    'and are not repeated'
  )
})

t.test('the secrets of development', async (t) => {
  const mode = (path: string) => (statSync(path).mode & 0o777).toString(8)

  t.test('are made once, random, and for the eyes of their owner only', async (t) => {
    const dataDir = join(t.testdir(), 'data')
    const first = readConfig({ DATA_DIR: dataDir })
    const file = join(dataDir, 'secrets', 'jwt_secret')
    t.strictSame(first.jwtSecret, [readFileSync(file, 'utf8')])
    t.ok(Buffer.byteLength(first.jwtSecret[0] as string) >= 32)
    t.equal(mode(file), '600')
    t.equal(mode(join(dataDir, 'secrets')), '700')
    t.strictSame(readConfig({ DATA_DIR: dataDir }), first, 'the next start has the same')
    const other = readConfig({ DATA_DIR: join(t.testdirName, 'other') })
    t.not(other.jwtSecret[0], first.jwtSecret[0], 'another folder has another')
  })
  t.test('have mode 600 whatever the umask', async (t) => {
    const before = process.umask(0)
    t.teardown(() => process.umask(before))
    const dataDir = join(t.testdir(), 'data')
    readConfig({ DATA_DIR: dataDir })
    t.equal(mode(join(dataDir, 'secrets', 'jwt_secret')), '600')
    t.equal(mode(join(dataDir, 'secrets')), '700')
  })
  t.test('give way to those of the environment', async (t) => {
    const dataDir = join(t.testdir(), 'data')
    const config = readConfig({ DATA_DIR: dataDir, JWT_SECRET: strongSecret })
    t.strictSame(config.jwtSecret, [strongSecret])
    t.notOk(existsSync(dataDir), 'nothing was made')
  })
  t.test('include a pepper that follows from each JWT_SECRET, and is none of them', async (t) => {
    const one = readConfig({ JWT_SECRET: strongSecret })
    const two = readConfig({ JWT_SECRET: `${otherStrongSecret},${strongSecret}` })
    t.equal(one.passwordPepper.length, 1)
    t.equal(two.passwordPepper.length, 2)
    t.equal(two.passwordPepper[1], one.passwordPepper[0], 'a rotation keeps the old pepper')
    t.ok(Buffer.byteLength(one.passwordPepper[0] as string) >= 32)
    t.notOk(one.passwordPepper.includes(strongSecret))
    t.strictSame(readConfig({ JWT_SECRET: strongSecret, PASSWORD_PEPPER: 'mine' }).passwordPepper, ['mine'])
  })
  t.test('are never empty, also when the last start was cut off while it made them', async (t) => {
    const dataDir = join(t.testdir(), 'data')
    mkdirSync(join(dataDir, 'secrets'), { recursive: true })
    writeFileSync(join(dataDir, 'secrets', 'jwt_secret'), '')
    let secrets: string[] = []
    try {
      secrets = readConfig({ DATA_DIR: dataDir }).jwtSecret
    } catch (err) {
      t.match((err as Error).message, 'jwt_secret', 'or the start is refused and names the file')
      return
    }
    t.ok(
      secrets.every((secret) => secret.length >= 32),
      'tokens signed with nothing could be made by anybody'
    )
  })
})

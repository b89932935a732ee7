import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  createTestDatabase,
  eventually,
  readText,
  startServer,
  type Tokens,
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'
import { call, me, register } from './server-calls.ts'
import { decode, otherStrongSecret, strongSecret } from './tokens.ts'

// rehearsal: a real vault writes the secrets

/*
 * A vault whose agent writes the secrets into files, with the templates of deploy/openbao: what changes in the vault reaches a server
 * that runs.
 */

const bao = findProgram('bao')
const rootToken = 'root-of-the-tests'

function run(t: Test, args: string[], env: Record<string, string> = {}): { output(): string } {
  const child = spawn(bao.path, args, { env: { PATH: process.env.PATH, HOME: '/nonexistent', ...env } })
  let text = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (chunk) => (text += chunk))
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
  })
  return { output: () => text }
}

t.test('a secret that changes in the vault', { skip: bao.skip }, async (t) => {
  const folder = temporaryFolder(t)
  const address = `http://127.0.0.1:${await freePort()}`
  run(t, [
    'server',
    '-dev',
    '-dev-no-store-token',
    `-dev-root-token-id=${rootToken}`,
    `-dev-listen-address=${new URL(address).host}`
  ])
  const ask = async (path: string, body?: object) => {
    const reply = await fetch(`${address}/v1/${path}`, {
      method: body ? 'POST' : 'GET',
      headers: { 'x-vault-token': rootToken },
      ...(body && { body: JSON.stringify(body) })
    })
    if (!reply.ok) throw new Error(`${path}: ${reply.status} ${await reply.text()}`)
    return reply.status === 204 ? {} : ((await reply.json()) as { data: Record<string, string> })
  }
  await eventually(
    () =>
      ask('sys/health').then(
        () => true,
        () => false
      ),
    60_000
  )

  const database = await createTestDatabase(t)
  const given = { password_pepper: 'a-pepper-0f-the-tests-of-the-vault', database_url: database.app }
  const others = { redis_url: '', s3_access_key: '', s3_secret_key: '', smtp_url: '' }
  const store = (jwt_secret: string) => ask('secret/data/aggios', { data: { ...given, ...others, jwt_secret } })
  await store(strongSecret)
  await ask('sys/policies/acl/aggios', { policy: readText('deploy/openbao/policy.hcl') })
  await ask('sys/auth/approle', { type: 'approle' })
  await ask('auth/approle/role/aggios', { token_policies: 'aggios', token_ttl: '1h' })
  const role = (await ask('auth/approle/role/aggios/role-id')) as { data: Record<string, string> }
  const secret = (await ask('auth/approle/role/aggios/secret-id', {})) as { data: Record<string, string> }
  writeFileSync(join(folder, 'role_id'), String(role.data.role_id))
  writeFileSync(join(folder, 'secret_id'), String(secret.data.secret_id))
  const secrets = join(folder, 'secrets')
  mkdirSync(secrets)
  const config = readText('deploy/openbao/agent.hcl')
    .replace('https://vault.example:8200', address)
    .replaceAll('/etc/aggios/openbao', folder)
    .replaceAll('/run/secrets/aggios', secrets)
    .replace('"10s"', '"1s"')
  writeFileSync(join(folder, 'agent.hcl'), config)
  const agent = run(t, ['agent', `-config=${join(folder, 'agent.hcl')}`])
  const file = (name: string) => join(secrets, name.toLowerCase())
  const names = ['JWT_SECRET', 'PASSWORD_PEPPER', 'DATABASE_URL']
  await eventually(() => names.every((name) => existsSync(file(name))), 30_000).catch(() => t.fail(agent.output()))

  const direct = testEnvironment(database)
  for (const name of names) delete direct[name]
  const server = await startServer(t, {
    ...direct,
    ...Object.fromEntries(names.map((name) => [`${name}_FILE`, file(name)])),
    LOG_LEVEL: 'info'
  })
  const { access_token } = await register(server, 'acme')
  const kidOf = (token: string) => decode(token).header.kid
  const signIn = async () => {
    const credentials = { email: 'owner@acme.example', password: 'correct horse battery' }
    return (await call(server, 'POST', '/auth/login', credentials)).body as unknown as Tokens
  }

  await t.test('reaches a server that runs', async (t) => {
    await store(`${otherStrongSecret},${strongSecret}`)
    await eventually(async () => kidOf((await signIn()).access_token) !== kidOf(access_token), 30_000)
    t.equal(readFileSync(file('JWT_SECRET'), 'utf8').trim(), `${otherStrongSecret},${strongSecret}`)
    t.equal((await me(server, access_token)).status, 200, 'and nobody is signed out')
  })

  await t.test('changes nothing when it is unusable', async (t) => {
    await store('short')
    await eventually(() => server.output().includes('files of secrets can not be used'), 30_000)
    t.equal((await me(server, access_token)).status, 200)
    t.notOk(server.output().includes(strongSecret), 'no secret is in the log')
    await store(otherStrongSecret)
    await eventually(async () => (await me(server, access_token)).status === 401, 30_000)
    t.equal((await me(server, (await signIn()).access_token)).status, 200, 'and a better one is used')
  })
})

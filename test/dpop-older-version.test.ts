import { execFileSync } from 'node:child_process'
import { readdirSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { createDevice } from './dpop.ts'
import { enroll, forgetUsedCodes } from './factors.ts'
import {
  allRows,
  createTenant,
  password,
  post,
  readText,
  root,
  startApp,
  startServer,
  type Tokens,
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { me } from './requests.ts'
import { sidOf } from './tokens.ts'

/*
 * While a new version is rolled out, processes of the version before serve on the same database: they know no keys of
 * sessions (DPoP), and must not take a bound session for one without a key.
 */

const folderOfSteps = 'db/migrations'

/**
 * The last commit before sessions had keys whose steps of the schema are all known today: a step that was still to be released may
 * have got another name since. Undefined without the history.
 */
function findCommitBefore(): string | undefined {
  const git = (...args: string[]) => execFileSync('git', args, { cwd: root, encoding: 'utf8', stdio: 'pipe' }).trim()
  const today = new Set(readdirSync(join(root, folderOfSteps)))
  try {
    const added = git('log', '--diff-filter=A', '--format=%H', '--', `${folderOfSteps}/0023_bound_sessions.ts`)
    const commits = git('log', '--format=%H', `${added.split('\n').at(-1)}^`, '--', folderOfSteps).split('\n')
    return commits.find((commit) =>
      git('ls-tree', '--name-only', `${commit}:${folderOfSteps}`)
        .split('\n')
        .every((name) => today.has(name))
    )
  } catch {
    return undefined
  }
}

const commit = findCommitBefore()

/** Extracts the sources of a commit into a folder, with the packages of this one. Resolves to its server. */
function checkOut(t: Test, commit: string): string {
  const folder = temporaryFolder(t)
  const parts = ['src', 'plugins', 'routes', 'db', 'package.json', 'tsconfig.json']
  const archive = execFileSync('git', ['archive', commit, ...parts], { cwd: root, maxBuffer: 64 * 1024 ** 2 })
  execFileSync('tar', ['-x', '-C', folder], { input: archive })
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'))
  return join(folder, 'src', 'server.ts')
}

t.test(
  'a process of the version before keys',
  { skip: !commit && 'the history of the sources is not here' },
  async (t) => {
    const app = await startApp(t)
    const acme = await createTenant(app, 'acme')
    const phone = createDevice(app)
    const login = () => phone.send(acme.host, post('/auth/login', { email: acme.owner.email, password }))
    const tokens: Tokens = (await login()).json()
    const env = testEnvironment(app.database, { DATABASE_POOL: '3' })
    const older = await startServer(t, env, { file: checkOut(t, commit as string) })
    const ask = async (path: string, headers: Record<string, string>, payload?: object) => {
      const reply = await older.fetch(path, {
        method: payload || path.endsWith('logout') ? 'POST' : 'GET',
        headers: { ...headers, ...(payload && { 'content-type': 'application/json' }) },
        ...(payload && { body: JSON.stringify(payload) })
      })
      const body = reply.status === 204 ? undefined : ((await reply.json()) as Record<string, string>)
      return { status: reply.status, body }
    }
    const row = () => allRows(app.database, 'select * from sessions where id = $1', [sidOf(tokens)])
    const before = await row()
    const { access_token, refresh_token } = tokens

    await t.test('refuses the tokens of a bound session, however they are sent', async (t) => {
      for (const scheme of ['Bearer', 'DPoP']) {
        const authorization = `${scheme} ${access_token}`
        t.match(await ask(me, { authorization }), { status: 401 }, scheme)
        t.match(await ask('/api/v1/auth/logout', { authorization }), { status: 401 }, `sign-out with ${scheme}`)
      }
      for (const path of ['/api/v1/auth/refresh', '/api/v1/auth/logout']) {
        const refused = { status: 401, body: { code: 'invalid_refresh_token' } }
        t.match(await ask(path, {}, { refresh_token }), refused, path)
      }
      // the client deletes its tokens then
      t.match(
        readText('docs/dpop.md'),
        /answer a refresh with 401 `invalid_refresh_token`, which ends the session at the client/
      )
      t.match(readText('docs/upgrades.md'), /Set it only when all processes are new/)
      t.strictSame(await row(), before, 'and the session is as it was')
      t.equal((await phone.send(acme.host, me, tokens)).statusCode, 200)
    })
    await t.test('completes no sign-in that began with a key', async (t) => {
      const { code } = await enroll(app, acme)
      await forgetUsedCodes(app, acme.owner.id)
      const { mfa_token } = (await login()).json()
      const refused = { status: 401, body: { code: 'invalid_mfa_token' } }
      t.match(await ask('/api/v1/auth/mfa', {}, { mfa_token, code: code() }), refused)
      const completed = await phone.send(acme.host, post('/auth/mfa', { mfa_token, code: code() }))
      t.match(completed.json(), { token_type: 'DPoP' })
    })
    await t.test('goes on with sessions without a key, and says that the ones it opens have none', async (t) => {
      const person = await createTenant(app, 'person')
      const { owner } = person
      t.match(await ask(me, { authorization: `Bearer ${owner.tokens.access_token}` }), { status: 200 })
      const renewed = await ask('/api/v1/auth/refresh', {}, { refresh_token: owner.tokens.refresh_token })
      t.match(renewed, { status: 200, body: { token_type: 'Bearer' } })
      const opened = await ask('/api/v1/auth/login', { dpop: 'a.b.c' }, { email: owner.email, password })
      t.match(opened, { status: 200, body: { token_type: 'Bearer' } })
      const renewedHere = await person.anonymous(post('/auth/refresh', { refresh_token: renewed.body?.refresh_token }))
      t.match(renewedHere.json(), { token_type: 'Bearer' }, 'and this version goes on with them')
    })
  }
)

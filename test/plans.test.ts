import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import t from 'tap'
import {
  allRows,
  commandFile,
  createTenant,
  createTestDatabase,
  elsewhere,
  eventually,
  startApp,
  testEnvironment
} from './harness.ts'
import { me } from './requests.ts'

t.test('plans', async (t) => {
  const database = await createTestDatabase(t)
  const env = { RATE_LIMIT_TENANT: '5/1h' }
  const app = await startApp(t, env, database)
  const other = await startApp(t, env, database)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')

  /** Runs an operator's command, with the settings of the server. Resolves to its output and exit code. */
  const command = async (name: 'plan' | 'tenant', ...args: string[]) => {
    const options = {
      cwd: elsewhere,
      env: { PATH: process.env.PATH, ...testEnvironment(database) } as NodeJS.ProcessEnv
    }
    const { stderr, code = 0 } = await promisify(execFile)(
      process.execPath,
      [...process.execArgv, commandFile(name), ...args],
      options
    ).catch((err) => err)
    return { said: stderr as string, code: code as number }
  }
  const policy = async (tenant: typeof acme, on = app) => {
    const reply = await on.inject({
      url: me,
      headers: { host: tenant.host, authorization: `Bearer ${tenant.owner.tokens.access_token}` }
    })
    return [reply.statusCode, reply.headers['ratelimit-policy']]
  }

  t.test('everybody begins with free, which leaves all to the settings', async (t) => {
    t.equal((await acme.send('/api/v1/tenant')).json().plan, 'free')
    t.strictSame(await command('plan', 'list'), {
      said: 'free: requests default, storage default, 2 agencies\n',
      code: 0
    })
    t.strictSame(await policy(acme), [200, '"tenant";q=5;w=3600'])
  })
  t.test('an agency gets another one, on every process while they run', async (t) => {
    for (let i = 0; i < 5; i++) await policy(acme)
    t.strictSame((await policy(acme))[0], 429)
    t.match(await command('plan', 'set', 'pro', '--requests', '100/1m', '--storage', '2GiB'), {
      said: 'pro: requests 100 in 60 s, storage 2147483648 bytes, 0 agencies\n',
      code: 0
    })
    t.match(await command('tenant', 'plan', 'acme', 'pro'), { said: 'acme has the plan pro\n', code: 0 })
    for (const each of [app, other]) {
      await eventually(async () => (await policy(acme, each))[1] === '"tenant";q=100;w=60')
      t.equal((await policy(acme, each))[0], 200)
    }
    t.strictSame((await policy(rival))[1], '"tenant";q=5;w=3600', 'nobody else')
    // another process has changed it, which what is remembered may miss for a second
    const newest = { url: '/api/v1/tenant', headers: { 'cache-control': 'no-cache' } }
    t.equal((await acme.send(newest)).json().plan, 'pro')
    t.match(await app.tenants.limitsOf(acme.id), { storage_quota: 2 * 2 ** 30 })
    t.match(await app.tenants.limitsOf(rival.id), { storage_quota: null })
    const audit = "select detail from audit_events where tenant_id = $1 and action = 'tenant.plan_changed'"
    t.strictSame(await allRows(database, audit, [acme.id]), [{ detail: { after: { plan: 'pro' } } }])
  })
  t.test('a plan changes under those who have it', async (t) => {
    t.equal((await command('plan', 'set', 'pro', '--requests', '7/1m')).code, 0)
    for (const each of [app, other]) await eventually(async () => (await policy(acme, each))[1] === '"tenant";q=7;w=60')
    t.match(await app.tenants.limitsOf(acme.id), { storage_quota: 2 * 2 ** 30 }, 'what is not named stays')
    t.equal((await command('plan', 'set', 'pro', '--requests', '0', '--storage', 'default')).code, 0)
    await eventually(async () => (await policy(acme))[1] === undefined)
    t.equal((await command('plan', 'set', 'pro', '--requests', 'default')).code, 0)
    await eventually(async () => (await policy(acme))[1] === '"tenant";q=5;w=3600')
    t.match(await command('plan', 'list'), { said: /^free: .*1 agencies\npro: requests default, storage default, 1 / })
  })
  t.test('what there is not is refused', async (t) => {
    t.match(await command('tenant', 'plan', 'acme', 'gold'), {
      said: 'there is no plan called gold; there are free, pro\n',
      code: 1
    })
    t.match(await command('tenant', 'plan', 'nobody', 'pro'), { said: 'there is no agency called nobody\n', code: 1 })
    for (const args of [
      [],
      ['set'],
      ['set', 'Pro'],
      ['drop', 'pro'],
      ['list', 'pro'],
      ['set', 'pro', '--requests', 'many'],
      ['set', 'pro', '--storage', '1GB'],
      ['set', 'pro', '--price', '1']
    ]) {
      t.match(
        await command('plan', ...args),
        { said: /^(error: .*|Usage: npm run plan -- (?:.|\n)*)\n$/, code: 2 },
        args.join(' ')
      )
    }
    t.equal((await command('tenant', 'plan', 'acme')).code, 2)
  })
  t.test('a tenant sees no plan but by asking for its own', async (t) => {
    await t.rejects(
      app.gate.transaction({ tenant_id: acme.id, user_id: null, request: '' }, (trx) =>
        trx
          .selectFrom('plans' as never)
          .selectAll()
          .execute()
      ),
      /permission denied/
    )
  })
})

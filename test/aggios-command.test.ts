import { execFile } from 'node:child_process'
import t from 'tap'
import { program } from '../src/cli/aggios.ts'
import { renderReference } from '../src/cli/command-reference.ts'
import {
  addMember,
  allRows,
  commandFile,
  createTenant,
  elsewhere,
  eventually,
  password,
  post,
  readText,
  startApp,
  type Tenant,
  testEnvironment
} from './harness.ts'
import { bearer, login, me } from './requests.ts'

/*
 * `npm run aggios`: everything that an operator does, in one command.
 */

t.test('npm run aggios', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const { email, id: owner } = acme.owner
  await addMember(app, acme, rival.owner.id, 'viewer')
  const env = { PATH: process.env.PATH, ...testEnvironment(app.database) } as NodeJS.ProcessEnv

  const runFile = (file: string, more: NodeJS.ProcessEnv | Record<string, string>, ...args: string[]) =>
    new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
      const options = { cwd: elsewhere, env: { ...env, ...more } }
      execFile(process.execPath, [...process.execArgv, commandFile(file), ...args], options, (err, stdout, stderr) =>
        resolve({ code: err ? Number(err.code) : 0, stdout, stderr })
      )
    })
  const runWith = (more: Record<string, string>, ...args: string[]) => runFile('aggios', more, ...args)
  const run = (...args: string[]) => runWith({}, ...args)
  const dataWith = async (more: Record<string, string>, ...args: string[]) => {
    const { code, stdout, stderr } = await runWith(more, ...args, '--json')
    if (code !== 0) throw new Error(stdout + stderr)
    return JSON.parse(stdout)
  }
  const data = (...args: string[]) => dataWith({}, ...args)
  const eventsIn = async (tenantId: string, action: string) =>
    (
      await allRows(
        app.database,
        'select actor_id, target_id, detail from audit_events where tenant_id = $1 and action = $2',
        [tenantId, action]
      )
    ).map(({ actor_id, target_id, detail }) => ({ actor_id, target_id, detail }))

  t.test('has parts that are programs of their own', async (t) => {
    t.match(await runFile('tenant', {}, 'list'), { code: 0, stdout: /^acme: / })
    t.match(await runFile('tenant', {}, 'show', 'acme'), { code: 0, stdout: /\nacme: / })
    t.match(await runFile('outbox', {}, 'backlog'), { code: 0, stdout: 'due: 0\n' })
    t.match(await runFile('outbox', {}, 'dropped'), { code: 0, stdout: 'given up: 0\n' })
    t.equal((await runFile('jobs', {}, 'list')).code, 0)
  })
  t.test('says that the database is away by a status of its own', async (t) => {
    const away = { DATABASE_URL: 'postgres://aggios_app:x@127.0.0.1:1/aggios' }
    for (const words of ['tenants list', 'jobs list', 'people show nobody@example.com'])
      t.match(
        await runWith(away, ...words.split(' ')),
        { code: 69, stderr: /can not be reached: .*correct DATABASE_URL/ },
        words
      )
  })
  t.test('says what there is, and names what it does not know', async (t) => {
    const help = await run('--help')
    t.equal(help.code, 0)
    for (const name of [
      'doctor',
      'files',
      'jobs',
      'keys',
      'migrate',
      'outbox',
      'people',
      'plans',
      'sessions',
      'tenants'
    ]) {
      t.match(help.stdout, new RegExp(`^  ${name} `, 'm'))
    }
    t.match(await run('tenants', 'forget'), { code: 2, stderr: /unknown command 'forget'/ })
    const refused = await run('tenants', 'show', 'nobody', '--json')
    t.equal(refused.code, 1)
    t.strictSame(JSON.parse(refused.stdout), { error: 'there is no agency called nobody' })
    for (const [words, error] of [
      ['tenants forget --json', /^unknown command 'forget'/],
      ['--json tenants suspend rival', /^this locks everybody out of an agency: repeat it with --yes$/]
    ] as const) {
      const { code, stdout, stderr } = await run(...words.split(' '))
      t.strictSame([code, stderr], [2, ''], words)
      t.match(JSON.parse(stdout), { error })
    }
  })

  t.test('lists keys, and what is stored that needs each', async (t) => {
    const { PASSWORD_PEPPER: pepper = '' } = env
    const settings = (text: string) => ({ PASSWORD_PEPPER: text })
    const alone = await data('keys', 'list')
    t.match(alone, {
      keys: [
        { setting: 'JWT_SECRET', first: true, needed_by: [] },
        { setting: 'PASSWORD_PEPPER', first: true, needed_by: ['passwords'] }
      ],
      missing: []
    })
    const [, { id }] = alone.keys
    const [, added, old] = (await dataWith(settings(`a newer pepper of the tests,${pepper}`), 'keys', 'list')).keys
    t.match(
      [added, old],
      [
        { first: true, needed_by: [] },
        { id, first: false, needed_by: ['passwords'] }
      ]
    )
    const lost = await dataWith(settings('another pepper of the tests'), 'keys', 'list')
    t.strictSame(lost.missing, [{ id, needed_by: 'passwords' }])
    const { stdout } = await run('keys', 'list')
    t.match(stdout, /^JWT_SECRET [\w-]{11}: the first, in use; needed by tokens that it has signed\nPASSWORD_PEPPER /)
    t.notMatch(stdout, pepper)
  })

  t.test('lists, shows, suspends and restores agencies', async (t) => {
    const { agencies } = await data('tenants', 'list')
    t.match(agencies, [
      { slug: 'acme', status: 'active', members: 2, bytes: 0, plan: String, purge_at: null },
      { slug: 'rival', members: 1 }
    ])
    t.match((await run('tenants', 'list')).stdout, /^acme: .*, active, plan \w+, 2 people, 0 bytes\nrival: /)
    t.match(await data('tenants', 'show', 'ACME'), { id: acme.id, slug: 'acme' })

    t.match(await run('tenants', 'suspend', 'rival'), {
      code: 2,
      stderr: /locks everybody out of an agency: repeat it with --yes/
    })
    t.equal((await rival.send(me)).statusCode, 200, 'nothing was changed')
    t.match(await run('tenants', 'suspend', 'rival', '--yes'), { code: 0, stderr: 'rival is suspended\n' })
    t.match(await run('tenants', 'restore', 'rival'), { code: 1, stderr: 'rival was not deleted\n' })
    t.strictSame(await data('tenants', 'resume', 'rival'), { done: 'rival is active' })
    await eventually(async () => (await rival.send(me)).statusCode === 200)

    await rival.send({ method: 'DELETE', url: '/api/v1/tenant', payload: { slug: 'rival' } })
    const deleted = await data('tenants', 'show', 'rival')
    t.equal(deleted.status, 'suspended')
    t.match(deleted.purge_at, /^20/)
    t.match((await run('tenants', 'list')).stdout, /rival: .*, deleted, purged after 20/)
    t.match(await run('tenants', 'restore', 'rival'), { code: 0, stderr: 'rival is active again\n' })
    await eventually(async () => (await login(app, rival.owner.email, password)).statusCode === 200)
    t.equal((await eventsIn(rival.id, 'tenant.resumed')).length, 2)
  })

  t.test('shows people, and asks before it ends something for them', async (t) => {
    const person = await data('people', 'show', email)
    t.match(person, { id: owner, email, tenants: [{ slug: 'acme', role: 'owner' }], factors: [], password_set: true })
    t.notMatch(JSON.stringify(person), 'argon2')
    t.match(await run('people', 'sign-out', email), { code: 2, stderr: /ends all sessions of a person/ })
    t.match(await data('plans', 'list'), { plans: [{ name: String }] })
  })

  t.test('lists and ends sessions, and the agency sees it', async (t) => {
    const headers = bearer((await login(app, email, password)).json().access_token)
    const status = async () => (await app.inject({ url: me, headers: { host: 'localhost', ...headers } })).statusCode
    t.equal(await status(), 200)
    const { sessions, more } = await data('sessions', 'list', 'acme')
    t.equal(more, false)
    const [newest] = sessions
    t.match(newest, { email, id: String })
    t.match((await run('sessions', 'list', 'acme')).stdout, `${newest.id}: ${email}, last used 20`)
    t.notMatch(JSON.stringify(await data('sessions', 'list', 'rival')), newest.id, 'another agency has none of it')
    t.match(await run('sessions', 'end', 'acme', newest.id), { code: 2 })
    t.match(await run('sessions', 'end', 'rival', newest.id, '--yes'), { code: 1, stderr: /rival has no open session/ })
    t.equal(await status(), 200)
    t.match(await run('sessions', 'end', 'acme', newest.id, '--yes'), { code: 0, stderr: / is ended\n$/ })
    await eventually(async () => (await status()) === 401, 5000)
    const ended = (await eventsIn(acme.id, 'session.ended')).filter(({ detail }) => detail?.by === 'operator')
    t.strictSame(ended, [{ actor_id: null, target_id: owner, detail: { by: 'operator' } }])
  })

  t.test('ends the API keys of an agency, or of all, and each agency sees it', async (t) => {
    const makeKey = async (tenant: Tenant) => {
      const body = { name: 'Robot', role: 'member', permissions: ['files:read'] }
      const { access_token } = await tenant.signIn()
      return (await tenant.with(access_token, post('/api-keys', body))).json() as { id: string; key: string }
    }
    const status = async (tenant: Tenant, { key }: { key: string }) =>
      (await tenant.with(key, '/api/v1/files')).statusCode
    const [first, second, third] = [await makeKey(acme), await makeKey(acme), await makeKey(rival)]
    t.strictSame([await status(acme, first), await status(rival, third)], [200, 200])
    t.match(await run('tenants', 'end-keys', 'acme'), { code: 2, stderr: /ends every API key of an agency, or of all/ })
    for (const words of [[], ['acme', '--all']])
      t.match(await run('tenants', 'end-keys', ...words, '--yes'), {
        code: 1,
        stderr: /name an agency, or every one by --all/
      })
    t.match(await run('tenants', 'end-keys', 'acme', '--yes'), {
      code: 0,
      stderr: 'API keys of acme that are ended now: 2\n'
    })
    for (const key of [first, second]) await eventually(async () => (await status(acme, key)) === 401, 5000)
    t.equal(await status(rival, third), 200, 'those of others stay')
    t.match(await run('tenants', 'end-keys', '--all', '--yes'), {
      code: 0,
      stderr: 'API keys of all agencies that are ended now: 1\n'
    })
    await eventually(async () => (await status(rival, third)) === 401, 5000)
    const detail = { by: 'operator', before: { name: 'Robot' } }
    t.strictSame(await eventsIn(rival.id, 'api_key.ended'), [{ actor_id: null, target_id: third.id, detail }])
    t.equal((await eventsIn(acme.id, 'api_key.ended')).length, 2)
  })

  t.test('shows mails that were not sent, and retries and drops them', async (t) => {
    // far in the future, so that the server does not send them meanwhile
    const mail = (text: string, values: unknown[]) =>
      allRows(app.database, text, values).then(([row]) => row?.id as string)
    const ofAgency = (generation: number) =>
      mail(
        `insert into outbox (tenant_id, kind, subject_id, generation, mailbox, due_at, attempts, last_error)
          values ($1, 'invitation', gen_random_uuid(), $2, 'x@y.example', now() + interval '1 hour', 3, 'busy \u001b[2J') returning id`,
        [acme.id, generation]
      )
    const invitation = await ofAgency(1)
    const account = await mail(
      `insert into account_mails (kind, address, due_at) values ('reset', 'x@y.example', now() + interval '2 hours')
        returning id`,
      []
    )
    const { mails } = await data('outbox', 'backlog')
    t.match(mails, [
      { id: invitation, agency_id: acme.id, kind: 'invitation', attempts: 3 },
      { id: account, agency_id: null }
    ])
    const listed = await run('outbox', 'backlog')
    t.match(listed.stdout, `${invitation}: invitation, due 20`)
    t.match(listed.stdout, 'attempts 3, busy ?[2J\n')
    t.notMatch(listed.stdout, 'y.example')

    t.match(await run('outbox', 'drop', invitation, account), { code: 2, stderr: /gives up mails/ })
    t.strictSame(await data('outbox', 'drop', invitation, account, '--yes'), { changed: [invitation, account] })
    t.strictSame((await data('outbox', 'backlog')).mails, [])
    t.match((await data('outbox', 'dropped')).mails, [
      { id: invitation, last_error: 'given up by an operator' },
      { id: account }
    ])
    t.match(await run('outbox', 'drop', invitation, '--yes'), { code: 1, stderr: /no mail that waits/ })

    t.strictSame(await data('outbox', 'retry', invitation), { changed: [invitation] })
    // no invitation belongs to it, so that the server drops it as no longer wanted
    await eventually(async () => {
      const [row] = await allRows(app.database, 'select last_error, attempts from outbox where id = $1', [invitation])
      return row?.last_error === 'no longer wanted' && row.attempts === 1
    })
    const byOperator = { actor_id: null, target_id: invitation, detail: { by: 'operator', kind: 'invitation' } }
    t.strictSame(await eventsIn(acme.id, 'mail.dropped'), [byOperator])
    t.strictSame(await eventsIn(acme.id, 'mail.retried'), [byOperator])
  })

  t.test('shows when jobs succeeded, and runs one', async (t) => {
    await allRows(
      app.database,
      "insert into sign_in_failures (email, failed_at) values ('x@y.example', now() - interval '1 year')"
    )
    t.match(await run('jobs', 'run', 'housekeeping'), { code: 0, stderr: /housekeeping has run\n$/ })
    t.strictSame(await allRows(app.database, "select from sign_in_failures where email = 'x@y.example'"), [])
    await app.objectSweep.run()
    const { jobs } = await data('jobs', 'list')
    for (const job of ['housekeeping', 'object_sweep']) {
      t.match(
        jobs.find(({ name }: { name: string }) => name === job),
        { succeeded_at: /^20/, failed_at: null },
        job
      )
    }
    await app.jobs.record('object_sweep', new Error('no store'))
    t.match((await run('jobs', 'list')).stdout, /^object_sweep: succeeded 20\S+, failed 20\S+: no store$/m)
  })

  t.test('a job that is run says how this run has ended, and not another one', async (t) => {
    // a failure of another process, by a clock that is ahead
    await allRows(app.database, "update job_runs set failed_at = now() + interval '1 hour' where name = 'object_sweep'")
    t.match(await run('jobs', 'run', 'object_sweep'), { code: 0, stderr: /object_sweep has run\n$/ })
    env.SWEEP = 'off'
    t.match(await run('jobs', 'run', 'object_sweep'), { code: 1, stderr: /object_sweep was not run: SWEEP is off\n$/ })
    env.SWEEP = undefined
  })

  t.test('has the commands that there were, as they were', async (t) => {
    t.match(await data('files', 'compare'), { done: /^0 files without their bytes, 0 objects without a row/ })
    t.match(await run('files', 'compare', '--repair'), { code: 2, stderr: /removes files and objects/ })
    t.match(JSON.parse((await run('doctor', '--json', '--only', 'settings')).stdout), { status: String, findings: [] })
    t.match(await run('migrate'), { code: 78, stderr: /DATABASE_OWNER_URL/ })
  })
  t.equal((await acme.anonymous(post('/auth/login', { email, password }))).statusCode, 200, 'the server serves')
})

t.test('docs/commands.md is what the commands say of themselves', async (t) => {
  t.ok(readText('docs/commands.md').includes(renderReference(program)), 'npm run aggios -- --reference')
})

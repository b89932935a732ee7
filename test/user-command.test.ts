import { execFile } from 'node:child_process'
import t from 'tap'
import { enroll } from './factors.ts'
import {
  addMember,
  allRows,
  commandFile,
  createTenant,
  elsewhere,
  eventually,
  mailedTokens,
  password,
  post,
  send,
  startApp,
  startServer,
  testEnvironment
} from './harness.ts'
import { mailsAreSent, paths, reset, subjectsTo } from './mailed-links.ts'
import { createDevice, originOf, register } from './passkey-device.ts'
import { addProvider } from './providers.ts'
import { bearer, login, me, unknownId } from './requests.ts'

/*
 * `npm run user`: what an operator sees and changes of a person's account.
 */

t.test('npm run user', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const other = await createTenant(app, 'other')
  const { email, id } = acme.owner
  await addMember(app, other, id, 'viewer')
  const env = testEnvironment(app.database)
  const user = (...args: string[]) =>
    new Promise<{ code: number; stdout: string; stderr: string }>((resolve) => {
      const options = { cwd: elsewhere, env: { ...process.env, ...env } as NodeJS.ProcessEnv }
      execFile(process.execPath, [...process.execArgv, commandFile('user'), ...args], options, (err, stdout, stderr) =>
        resolve({ code: err ? Number(err.code) : 0, stdout, stderr })
      )
    })
  const said = async (...args: string[]) => {
    const { code, stderr } = await user(...args)
    if (code !== 0) throw new Error(stderr)
    return stderr
  }
  const eventsIn = async (tenantId: string, action: string) =>
    (
      await allRows(
        app.database,
        'select actor_id, target_id, detail from audit_events where tenant_id = $1 and action = $2',
        [tenantId, action]
      )
    ).map(({ actor_id, target_id, detail }) => ({ actor_id, target_id, detail }))
  const byOperator = [{ actor_id: null, target_id: id, detail: { by: 'operator' } }]

  t.test('says what there is, and names what it does not know', async (t) => {
    const help = await user('--help')
    t.equal(help.code, 0)
    for (const name of ['show', 'reset', 'disable', 'enable', 'sign-out', 'remove-factor'])
      t.match(help.stdout, ` ${name} <e-mail>`)
    t.match(help.stdout, ' unlink <e-mail> <identity-id>')
    t.match(await user('forget', email), { code: 2, stderr: /unknown command 'forget'/ })
    t.match(await user('show'), { code: 2, stderr: /missing required argument/ })
    t.match(await user('show', email, 'now'), { code: 2, stderr: /unknown word 'now'/ })
    t.match(await user('show', 'nobody@acme.example'), {
      code: 1,
      stderr: /nobody has the address nobody@acme\.example/
    })
  })
  t.test('shows an account, and no secret of it', async (t) => {
    await login(app, email, 'not the right one')
    await login(app, email, password, { headers: { 'user-agent': 'Phone\u001b[2J' } })
    await login(app, email, 'not the right one')
    const text = await said('show', email.toUpperCase())
    t.match(text, `id ${id}\n`)
    t.match(text, `e-mail ${email}, not verified\n`)
    t.match(text, 'not disabled\n')
    t.match(text, 'wrong passwords in a row: 1\n')
    t.match(text, 'agencies: 2\n')
    t.match(text, '  acme: owner\n')
    t.match(text, '  other: viewer\n')
    t.match(text, 'open sessions: 2\n')
    t.notMatch(text, 'argon2')
    t.match(text, 'Phone?[2J')
  })
  t.test('lists passkeys and linked sign-ins, and unlinks one', async (t) => {
    const link = (userId: string, provider: string, agency: string | null) =>
      allRows(
        app.database,
        `insert into user_identities (id, user_id, provider, agency_id, issuer, subject, email)
         values (gen_random_uuid(), $1::uuid, $2::text, $3, $2::text, $1::uuid::text, 'ada@gmail.example') returning id`,
        [userId, provider, agency]
      ).then(([row]) => row.id as string)
    const provider = await addProvider(acme, 'http://localhost:1')
    const [google, own] = [await link(id, 'google', null), await link(id, provider, acme.id)]
    const foreign = await link(other.owner.id, 'google', null)
    const session = await acme.signIn()
    const { id: passkey } = await register(acme, session, createDevice(originOf(acme)))
    const text = await said('show', email)
    t.match(text, `passkeys: 1\n  ${passkey}: A device, never used\n`)
    t.match(text, 'linked sign-ins: 2\n')
    t.match(text, `  ${google}: google, ada@gmail.example, never used\n`)
    t.match(text, `  ${own}: acme login of acme only, ada@gmail.example, never used\n`)

    for (const wrong of [foreign, unknownId, 'google']) {
      t.match(await user('unlink', email, wrong), { code: 1, stderr: /has no linked sign-in with this id/ })
    }
    // notices go to verified addresses only
    await allRows(app.database, 'update users set email_verified_at = now() where id = $1', [id])
    const done = `the sign-in of ${email} is unlinked, and they are signed out everywhere\n`
    t.equal(await said('unlink', email, google), done)
    t.equal(await said('unlink', email, own), done)
    t.match(await said('show', email), 'linked sign-ins: 0\n')
    t.match(await said('show', other.owner.email), 'linked sign-ins: 1\n', 'of nobody else')
    await eventually(async () => (await acme.with(session.access_token, me)).statusCode === 401, 3000)
    const unlinked = (by: string) => ({ actor_id: null, target_id: id, detail: { provider: by, by: 'operator' } })
    t.strictSame(await eventsIn(acme.id, 'user.identity_unlinked'), [unlinked('google'), unlinked(provider)])
    t.strictSame(await eventsIn(other.id, 'user.identity_unlinked'), [unlinked('google')], 'what concerns it')
    await mailsAreSent(app)
    t.ok(subjectsTo(app, email).includes('A way to sign in to your account was removed'))
    await allRows(app.database, 'update users set email_verified_at = null where id = $1', [id])
    await said('remove-factor', email)
  })
  t.test('sends a mail to set a new password, as whoever forgot it would ask', async (t) => {
    t.equal(await said('reset', email), `a mail to ${email} is queued\n`)
    await mailsAreSent(app)
    const token = mailedTokens(app, email, paths.reset).at(-1)
    for (const { id: tenantId } of [acme, other]) {
      t.strictSame(await eventsIn(tenantId, 'user.password_reset_requested'), byOperator)
    }
    t.equal((await reset(app, token, password)).statusCode, 204)
  })
  t.test('removes a second factor, of this person only, and tells them', async (t) => {
    const rival = await createTenant(app, 'rival')
    await enroll(app, rival)
    t.equal(await said('remove-factor', email), `${email} has no second factor\n`)
    await enroll(app, acme, await acme.signIn())
    t.match(await said('show', email), 'second factor set up, recovery codes left: 10\n')
    t.match((await login(app, email, password)).json(), { code: 'mfa_required' })
    t.equal(
      await said('remove-factor', email),
      `${email} has no second factor any more, and is signed out everywhere\n`
    )
    t.match(await said('show', email), 'second factor not set up\n')
    t.match(await said('show', email), 'open sessions: 0\n')
    t.equal((await login(app, email, password)).statusCode, 200)
    await said('sign-out', email)
    t.match((await login(app, rival.owner.email, password)).json(), { code: 'mfa_required' }, 'and of nobody else')
    for (const { id: tenantId } of [acme, other]) {
      t.match(await eventsIn(tenantId, 'user.mfa_removed'), [{ actor_id: null, target_id: id }])
    }
    await mailsAreSent(app)
    const subjects = subjectsTo(app, email)
    t.ok(subjects.includes('A second factor was set up for your account'))
    t.ok(subjects.includes('The second factor of your account was removed'))
  })
  t.test('ends sessions and disables, on every process within a second, and each agency sees it', async (t) => {
    const server = await startServer(t, env)
    const openSession = async () => bearer((await login(app, email, password)).json().access_token)
    const statuses = async (headers: Record<string, string>) => [
      (await send(app, 'localhost', { url: me, headers })).statusCode,
      (await fetch(server.url + me, { headers })).status
    ]
    const isOut = (headers: Record<string, string>) =>
      eventually(async () => (await statuses(headers)).every((status) => status === 401), 3000)

    const first = await openSession()
    t.strictSame(await statuses(first), [200, 200])
    t.equal(await said('sign-out', email), `${email} is signed out of 1 sessions\n`)
    await isOut(first)
    t.equal(await said('sign-out', email), `${email} has no open session\n`)

    const second = await openSession()
    t.equal(await said('disable', email), `${email} is disabled\n`)
    await isOut(second)
    t.equal((await login(app, email, password)).statusCode, 401)
    t.equal(await said('disable', email), `${email} is disabled already\n`)
    t.match(await user('reset', email), { code: 1, stderr: /is disabled, and gets no mail/ })
    t.match(await said('show', email), /\ndisabled since 20/)

    t.equal(await said('enable', email), `${email} is enabled\n`)
    t.equal(await said('enable', email), `${email} is not disabled\n`)
    await eventually(async () => (await statuses(second)).every((status) => status === 200), 3000)
    for (const { id: tenantId } of [acme, other]) {
      t.strictSame(await eventsIn(tenantId, 'user.disabled'), byOperator)
      t.strictSame(await eventsIn(tenantId, 'user.enabled'), byOperator)
      t.ok((await eventsIn(tenantId, 'user.signed_out')).length >= 1)
    }
    t.equal((await other.send(me)).statusCode, 200, 'nobody else is out')
    t.equal((await acme.anonymous(post('/auth/login', { email, password }))).statusCode, 200)
  })
})

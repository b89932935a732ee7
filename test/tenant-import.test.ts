import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createFile } from './forms.ts'
import {
  addMember,
  allRows,
  commandFile,
  createTenant,
  createTestDatabase,
  elsewhere,
  mailedTokens,
  password,
  post,
  run,
  send,
  startApp,
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { mailsAreSent } from './mailed-links.ts'

/*
 * An agency moves to another installation: what `GET /tenant/export` gives, and the files, go into `npm run tenant -- import`.
 */

t.test('an agency moves to another installation', async (t) => {
  const there = await startApp(t)
  const acme = await createTenant(there, 'acme')
  const [bob, carol] = [await createTenant(there, 'bobs'), await createTenant(there, 'carols')]
  await addMember(there, acme, bob.owner.id, 'admin')
  await addMember(there, acme, carol.owner.id, 'member')
  await acme.send(post('/invitations', { email: 'guest@acme.example', role: 'viewer' }))
  const files = [await createFile(acme, 'one', 'Ünïcode.txt'), await createFile(acme, 'two', 'two.txt')]
  const folder = temporaryFolder(t)
  const path = join(folder, 'acme.jsonl')
  writeFileSync(path, (await acme.send('/api/v1/tenant/export')).body)
  mkdirSync(join(folder, 'files'))
  for (const { id } of files) {
    writeFileSync(join(folder, 'files', id), (await acme.send(`/api/v1/files/${id}/content`)).rawPayload)
  }

  // here the owner of acme has an agency already, and somebody has registered the address of Carol without proof
  const database = await createTestDatabase(t)
  const here = await startApp(t, { LOG_LEVEL: 'info' }, database)
  const own = await createTenant(here, 'own', acme.owner.email)
  const squatter = await createTenant(here, 'squatter', carol.owner.email)
  await allRows(database, 'update users set email_verified_at = now() where id = $1', [own.owner.id])
  const command = (...words: string[]) =>
    run(process.execPath, [...process.execArgv, commandFile('tenant'), 'import', ...words], {
      cwd: elsewhere,
      env: {
        PATH: process.env.PATH,
        ...testEnvironment(database),
        DATABASE_OWNER_URL: database.owner
      } as NodeJS.ProcessEnv
    }).catch((err) => err)
  const state = () =>
    allRows(
      database,
      `select (select count(*) from tenants) as tenants, (select count(*) from users) as users, (select count(*) from files) as files,
        (select count(*) from memberships) as memberships, (select count(*) from audit_events) as events`
    )
  const before = await state()

  await t.test('not with bytes that are missing or changed, nor under an address that is taken', async (t) => {
    const damaged = join(temporaryFolder(t), 'files')
    mkdirSync(damaged)
    const [first] = files
    t.match(await command(path, damaged), {
      code: 1,
      stderr: /^nothing is imported: the bytes of Ünïcode.txt can't be read/
    })
    writeFileSync(join(damaged, first?.id as string), 'other')
    t.match(await command(path, damaged), { code: 1, stderr: /the bytes of Ünïcode.txt are not those of the export/ })
    t.match(await command(path, join(folder, 'files'), '--slug', 'own'), {
      code: 1,
      stderr: /the address own is taken/
    })
    writeFileSync(join(folder, 'broken.jsonl'), '{"table": "tenant"\n')
    t.match(await command(join(folder, 'broken.jsonl'), damaged), {
      code: 1,
      stderr: /line 1 of the export is no JSON/
    })
    t.strictSame(await state(), before, 'nothing of it is left')
  })

  await t.test('with its ids, people, files and invitations', async (t) => {
    const { stdout, stderr, code } = await command(path, join(folder, 'files'))
    t.equal(code, undefined, stderr)
    t.match(
      stdout,
      /people: 1 had an account here, 1 got one without a password, 1 must be invited\n {2}send the invitation of owner@carols/
    )
    t.match(stdout, /2 files, 1 open invitations/)
    t.equal(stderr, 'acme is here\n')
    const members = await allRows(
      database,
      'select user_id, role from memberships where tenant_id = $1 order by role desc',
      [acme.id]
    )
    t.strictSame(members, [
      { user_id: own.owner.id, role: 'owner' },
      { user_id: bob.owner.id, role: 'admin' }
    ])
    const reply = await send(here, 'acme.localhost', post('/auth/login', { email: acme.owner.email, password }))
    const { access_token } = reply.json()
    const get = (url: string) => own.with(access_token, { url, headers: { host: 'acme.localhost' } })
    t.match((await get('/api/v1/tenant')).json(), { id: acme.id, slug: 'acme', name: 'The acme agency' })
    for (const [index, { id, sha256, name }] of files.entries()) {
      t.match((await get(`/api/v1/files/${id}`)).json(), { id, sha256, name, created_by: own.owner.id })
      t.equal((await get(`/api/v1/files/${id}/content`)).body, ['one', 'two'][index])
    }
    const invited = (await get('/api/v1/invitations')).json().data.map(({ email }: { email: string }) => email)
    t.strictSame(invited.sort(), [carol.owner.email, 'guest@acme.example'].sort())
    const [event] = (await get('/api/v1/audit-events?action=tenant.imported')).json().data
    t.match(event, { action: 'tenant.imported', actor_id: null, detail: { by: 'operator', export: /^[0-9a-f]{64}$/ } })
    t.strictSame(await allRows(database, 'select * from miscounted_storage()'), [])
  })

  await t.test('where nobody gets in who does not read the mailbox', async (t) => {
    const asSquatter = await send(here, 'acme.localhost', post('/auth/login', { email: carol.owner.email, password }))
    t.not(asSquatter.statusCode, 200, 'who has registered the address of somebody else is no member')
    t.equal((await squatter.send('/api/v1/tenant')).json().slug, 'squatter', 'and has what they had')
    const bobsWord = 'seven green lanterns'
    t.not(
      (await send(here, 'acme.localhost', post('/auth/login', { email: bob.owner.email, password }))).statusCode,
      200
    )
    await send(here, 'acme.localhost', post('/auth/password/forgot', { email: bob.owner.email }))
    await mailsAreSent(here)
    const [token] = mailedTokens(here, bob.owner.email, '/password/reset')
    t.equal(
      (await send(here, 'acme.localhost', post('/auth/password/reset', { token, password: bobsWord }))).statusCode,
      204
    )
    t.equal(
      (await send(here, 'acme.localhost', post('/auth/login', { email: bob.owner.email, password: bobsWord })))
        .statusCode,
      200
    )
  })

  await t.test('once', async (t) => {
    const after = await state()
    t.match(await command(path, join(folder, 'files'), '--slug', 'another'), {
      code: 1,
      stderr: /the agency is here already/
    })
    t.strictSame(await state(), after)
  })
})

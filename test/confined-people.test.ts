import t, { type Test } from 'tap'
import { queryIn } from '../db/gate/gate.ts'
import { linkIdentity, myIdentities } from '../db/queries/sign-in/identities.ts'
import { withClient } from './databases.ts'
import { form } from './forms.ts'
import {
  addMember,
  allRows,
  createTenant,
  eventually,
  password,
  post,
  send,
  startApp,
  type Tenant,
  type TestApp,
  type Tokens
} from './harness.ts'
import { createDevice, originOf, passkeys, register, sharedRpId } from './passkey-device.ts'
import { addProvider, clientId, clientSecret, exchange, linkAt, signInAt, startScriptedProvider } from './providers.ts'
import { me } from './requests.ts'
import { decode } from './tokens.ts'

/*
 * People whom only the own provider of an agency lets in: what they may do with their account, and what keeps a way into it.
 */

const pixel = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==',
  'base64'
)

async function start(t: Test) {
  const [own, google] = [await startScriptedProvider(t), await startScriptedProvider(t)]
  const env = { GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer }
  const app = await startApp(t, { ...env, ...sharedRpId })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const key = await addProvider(acme, own.issuer, { newcomer_role: 'member' })
  await allRows(
    app.database,
    "insert into tenant_domains (tenant_id, name, verified_at) values ($1, 'acme.example', now())",
    [acme.id]
  )
  /** Somebody who comes for the first time, or again. */
  async function come(name: string): Promise<{ id: string; tokens: Tokens }> {
    const account = { sub: name, email: `${name}@acme.example`, email_verified: true, name }
    const { code, code_verifier } = await signInAt(app, { key, at: own }, 'acme', account)
    const reply = await exchange(app, code, code_verifier)
    if (reply.statusCode !== 200) throw new Error(reply.body)
    return { id: String(decode(reply.json().access_token).claims.user_id), tokens: reply.json() }
  }
  return { app, acme, rival, google, own, key, come }
}

const end = (tenant: Tenant, { access_token }: Tokens, payload: object = {}) =>
  tenant.with(access_token, { method: 'DELETE', url: me, payload })
const rename = (tenant: Tenant, { access_token }: Tokens) =>
  tenant.with(access_token, { method: 'PATCH', url: me, payload: { name: 'Another name' } })
const picture = (tenant: Tenant, { access_token }: Tokens) =>
  tenant.with(access_token, {
    ...{ method: 'PUT', url: `${me}/avatar` },
    ...form([{ name: 'file', filename: 'face.png', type: 'image/png', content: pixel }])
  })
const people = (app: TestApp, id: string) => allRows(app.database, 'select from users where id = $1', [id])
const identitiesOf = (app: TestApp, id: string) =>
  allRows(app.database, 'select provider from user_identities where user_id = $1 order by id', [id])

t.test('somebody who is in one agency only, by its provider', async (t) => {
  const { app, acme, rival, google, come } = await start(t)
  const forbidden = { status: 403, code: 'forbidden' }

  await t.test('changes their name and their picture', async (t) => {
    const { tokens } = await come('ada')
    t.match((await rename(acme, tokens)).json(), { name: 'Another name' })
    t.match((await picture(acme, tokens)).json(), { avatar_url: String })
    const removed = await acme.with(tokens.access_token, { method: 'DELETE', url: `${me}/avatar` })
    t.equal(removed.statusCode, 204)
  })

  await t.test('but not what another agency sees too', async (t) => {
    const { id, tokens } = await come('grace')
    await addMember(app, rival, id, 'member')
    for (const reply of [await rename(acme, tokens), await picture(acme, tokens), await end(acme, tokens)]) {
      t.match(reply.json(), forbidden)
    }
    await allRows(app.database, 'delete from memberships where user_id = $1 and tenant_id = $2', [id, rival.id])
    t.equal((await rename(acme, tokens)).statusCode, 200)
  })

  await t.test('ends their account after a fresh sign-in', async (t) => {
    const { id, tokens } = await come('early')
    await allRows(app.database, "update sessions set provider_at = now() - interval '6 minutes' where user_id = $1", [
      id
    ])
    t.match((await end(acme, tokens)).json(), { status: 403, code: 'reauthentication_required' })
    const again = await come('early')
    t.equal((await end(acme, again.tokens)).statusCode, 204)
    t.strictSame(await people(app, id), [])
    t.strictSame(await identitiesOf(app, id), [])
    await eventually(async () => (await acme.with(tokens.access_token, me)).statusCode === 401, 2000)
    t.not((await come('early')).id, id, 'and may come again, as somebody new')
  })

  await t.test('but not an account that other proofs open', async (t) => {
    const { id, tokens } = await come('guarded')
    const identity = `insert into user_identities (id, user_id, provider, issuer, subject) values (gen_random_uuid(), $1,
      'google', $2, 'guarded')`
    await allRows(app.database, identity, [id, google.issuer])
    t.match((await end(acme, tokens)).json(), forbidden, 'a sign-in that is good everywhere')
    await allRows(app.database, "delete from user_identities where user_id = $1 and provider = 'google'", [id])
    const known =
      'update users set password_hash = o.password_hash, pepper_id = o.pepper_id from users o where o.id = $2 and users.id = $1'
    await allRows(app.database, known, [id, acme.owner.id])
    t.match((await end(acme, tokens)).json(), { status: 400, code: 'validation_failed' }, 'a password')
    t.match((await end(acme, tokens, { password: 'not it' })).json(), { status: 401, code: 'invalid_credentials' })
    t.equal((await end(acme, tokens, { password })).statusCode, 204)
    t.match((await end(rival, rival.owner.tokens)).json(), { status: 400 }, 'an ordinary session needs it always')
  })

  await t.test('nor while another agency takes them in', async (t) => {
    const { id, tokens } = await come('late')
    await withClient(app.database.postgres, async (client) => {
      await client.query('begin')
      await client.query("insert into memberships (tenant_id, user_id, role) values ($1, $2, 'member')", [rival.id, id])
      const asked = end(acme, tokens)
      const waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
      await eventually(async () => (await allRows(app.database, waiting)).length > 0)
      await client.query('commit')
      t.match((await asked).json(), forbidden)
    })
    t.equal((await people(app, id)).length, 1)
  })

  await t.test('and an owner is the last one as ever', async (t) => {
    const { id, tokens } = await come('head')
    await allRows(app.database, "update memberships set role = 'member' where tenant_id = $1", [acme.id])
    await allRows(app.database, "update memberships set role = 'owner' where user_id = $1", [id])
    t.match((await end(acme, tokens)).json(), { status: 409, code: 'last_owner' })
  })
})

t.test('the last way in that is good in every agency of a person stays', async (t) => {
  const { app, acme, rival, google, own, key } = await start(t)
  const person = await createTenant(app, 'person')
  const { id, tokens } = person.owner
  await addMember(app, acme, id, 'member')
  const linked = await linkAt(app, { key: 'google', at: google }, person, { sub: 'p', email: 'p@gmail.example' })
  t.equal(linked.statusCode, 201, linked.body)
  const inAcme: Tokens = (
    await send(app, acme.host, post('/auth/login', { email: person.owner.email, password }))
  ).json()
  t.equal((await linkAt(app, { key, at: own }, { ...acme, slug: 'acme' }, { sub: 'p' }, inAcme)).statusCode, 201)
  await allRows(app.database, 'update users set password_hash = null, pepper_id = null where id = $1', [id])
  const remove = () =>
    person.with(tokens.access_token, { method: 'DELETE', url: `${me}/identities/${linked.json().id}` })
  const last = { status: 409, code: 'last_sign_in_method' }

  t.match((await remove()).json(), last, 'an identity of one agency opens no other one')
  const { device, id: passkey } = await register(person, tokens, createDevice(originOf(person)))
  t.ok(device)
  const confined = "delete from user_identities where user_id = $1 and provider = 'google'"
  const kept = await allRows(app.database, `${confined} returning *`, [id])
  const removePasskey = () => person.with(tokens.access_token, { method: 'DELETE', url: `${passkeys}/${passkey}` })
  t.match((await removePasskey()).json(), last, 'nor does it replace a passkey')
  await allRows(
    app.database,
    'insert into user_identities (id, user_id, provider, issuer, subject) values ($1, $2, $3, $4, $5)',
    [kept[0].id, id, 'google', kept[0].issuer, kept[0].subject]
  )
  const both = await Promise.all([remove(), removePasskey()])
  t.strictSame(both.map(({ statusCode }) => statusCode).sort(), [204, 409], 'of the last two one stays')

  const alone = await createTenant(app, 'alone')
  await addMember(app, acme, alone.owner.id, 'member')
  await allRows(app.database, 'delete from memberships where user_id = $1 and tenant_id = $2', [
    ...[alone.owner.id, alone.id]
  ])
  const login = post('/auth/login', { email: alone.owner.email, password })
  const session: Tokens = (await send(app, acme.host, login)).json()
  const global = await linkAt(app, { key: 'google', at: google }, acme, { sub: 'alone' }, session)
  t.equal((await linkAt(app, { key, at: own }, acme, { sub: 'alone' }, session)).statusCode, 201)
  await allRows(app.database, 'update users set password_hash = null, pepper_id = null where id = $1', [alone.owner.id])
  const removal = { method: 'DELETE', url: `${me}/identities/${global.json().id}` } as const
  await addMember(app, rival, alone.owner.id, 'viewer')
  t.match((await acme.with(session.access_token, removal)).json(), last)
  await allRows(app.database, 'delete from memberships where user_id = $1 and tenant_id = $2', [
    ...[alone.owner.id, rival.id]
  ])
  t.equal(
    (await acme.with(session.access_token, removal)).statusCode,
    204,
    'it is enough for somebody in its agency only'
  )
})

t.test('an identity goes with its provider and with the membership, whichever comes first', async (t) => {
  const { app, acme, key } = await start(t)
  const person = await createTenant(app, 'person')
  const { id } = person.owner
  const scope = { tenant_id: acme.id, user_id: id, request: '' }
  const identity = () => ({ id: crypto.randomUUID(), provider: key, own: true, issuer: 'x', subject: 's', email: null })
  const link = () => app.gate.transaction(scope, (trx) => linkIdentity(trx, identity()))
  const waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
  const removals = {
    membership: `delete from memberships where user_id = '${id}' and tenant_id = '${acme.id}'`,
    provider: `delete from identity_providers where id = '${key}'`
  }
  t.equal(await link(), 'gone', 'nobody but a member has one')
  for (const [title, removal] of Object.entries(removals)) {
    await addMember(app, acme, id, 'member')
    await withClient(app.database.postgres, async (client) => {
      await client.query('begin')
      await client.query(removal)
      const linking = link()
      await eventually(async () => (await allRows(app.database, waiting)).length > 0)
      await client.query('rollback')
      t.equal(await linking, 'linked', `a ${title} that stays after all`)
    })
    await allRows(app.database, 'delete from user_identities')
    await withClient(app.database.postgres, async (client) => {
      await client.query('begin')
      await client.query(removal)
      const linking = link()
      await eventually(async () => (await allRows(app.database, waiting)).length > 0)
      await client.query('commit')
      t.equal(await linking, 'gone', `a ${title} that is removed first`)
    })
    t.strictSame(await identitiesOf(app, id), [])
    if (title === 'membership') await addMember(app, acme, id, 'member')
    else await restore(app, acme, key)
    await app.gate.transaction(scope, async (trx) => {
      t.equal(await linkIdentity(trx, identity()), 'linked')
      const removed = allRows(app.database, removal)
      await eventually(async () => (await allRows(app.database, waiting)).length > 0)
      t.equal((await queryIn(trx, myIdentities, {})).length, 1)
      // settled when this transaction has ended
      void removed.catch(() => t.fail('the removal failed'))
    })
    await eventually(async () => (await identitiesOf(app, id)).length === 0)
    if (title === 'membership')
      await allRows(app.database, 'delete from memberships where user_id = $1 and tenant_id = $2', [id, acme.id])
  }
})

const restore = (app: TestApp, { id }: Tenant, key: string) =>
  allRows(
    app.database,
    `insert into identity_providers (tenant_id, id, place, name, issuer, client_id, client_secret, key_id)
     values ($1, $2, 1, 'Login', 'x', 'x', 'x', 'x')`,
    [id, key]
  )

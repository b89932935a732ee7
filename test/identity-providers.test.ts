import t from 'tap'
import { addMember, allRows, createTenant, eventually, password, post, send, startApp } from './harness.ts'
import { addProvider, clientId, clientSecret, exchange, linkAt, signInAt, startScriptedProvider } from './providers.ts'

const path = '/api/v1/identity-providers'
const input = {
  name: 'Acme login',
  issuer: 'https://login.acme.example',
  client_id: clientId,
  client_secret: clientSecret
}

t.test('the own providers of an agency', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const at = await startScriptedProvider(t)

  t.test('an owner adds, reads, changes and removes one, and never sees the secret', async (t) => {
    const created = await acme.send({ method: 'POST', url: path, payload: input })
    t.equal(created.statusCode, 201, created.body)
    const { id } = created.json()
    t.match(created.json(), {
      ...{ name: 'Acme login', issuer: input.issuer, email_claim: 'email', trust_email: false, newcomer_role: null },
      callback_url: `http://localhost:8080/api/v1/auth/oauth/${id}/callback`
    })
    t.strictSame((await acme.send(path)).json(), { data: [created.json()] })
    const payload = { newcomer_role: 'viewer', client_secret: 'another secret' }
    const headers = { 'if-match': String(created.headers.etag) }
    const changed = await acme.send({ method: 'PATCH', url: `${path}/${id}`, payload, headers })
    t.match(changed.json(), { newcomer_role: 'viewer', name: 'Acme login' })
    const stale = await acme.send({ method: 'PATCH', url: `${path}/${id}`, payload, headers })
    t.match(stale.json(), { status: 412, code: 'precondition_failed' })
    t.equal(
      (await acme.send({ method: 'PATCH', url: `${path}/${id}`, payload: { issuer: at.issuer } })).statusCode,
      400
    )
    for (const reply of [created, changed, await acme.send(`${path}/${id}`)]) t.notMatch(reply.body, /secret/)
    t.equal((await acme.send({ method: 'DELETE', url: `${path}/${id}` })).statusCode, 204)
    t.equal((await acme.send(`${path}/${id}`)).statusCode, 404)
    const rows = await allRows(
      app.database,
      "select action, detail from audit_events where action like 'identity_provider.%' order by id"
    )
    t.match(rows, [
      { action: 'identity_provider.created', detail: { after: { issuer: input.issuer } } },
      { action: 'identity_provider.updated', detail: { client_secret: 'replaced' } },
      { action: 'identity_provider.deleted', detail: { sessions_ended: 0 } }
    ])
    t.notMatch(JSON.stringify(rows), /another secret|secret of the client/)
  })

  t.test('the secret is stored encrypted, and opens for its own provider only', async (t) => {
    const [one, two] = [await addProvider(acme, input.issuer), await addProvider(acme, at.issuer)]
    const rows = await allRows(app.database, 'select client_secret from identity_providers')
    for (const { client_secret } of rows) t.notOk((client_secret as Buffer).includes(clientSecret))
    await allRows(
      app.database,
      'update identity_providers p set client_secret = o.client_secret from identity_providers o where p.id = $1 and o.id = $2',
      [two, one]
    )
    const start = await send(
      app,
      'localhost',
      `/api/v1/auth/oauth/${two}?redirect_to=http://acme.localhost:8080/&code_challenge=${'a'.repeat(43)}&tenant=acme`
    )
    t.equal(start.statusCode, 500)
    for (const id of [one, two]) await acme.send({ method: 'DELETE', url: `${path}/${id}` })
  })

  t.test('there are at most ten, also when more are added at once, and one of each issuer', async (t) => {
    const add = (n: number) =>
      acme.send({ method: 'POST', url: path, payload: { ...input, issuer: `https://${n}.example` } })
    const replies = await Promise.all(Array.from({ length: 14 }, (_, n) => add(n)))
    for (const reply of replies) t.ok([201, 409].includes(reply.statusCode), reply.body)
    for (let n = 20; n < 32; n++) await add(n)
    const { data } = (await acme.send(path)).json()
    t.equal(data.length, 10)
    t.match((await add(99)).json(), { status: 409, code: 'conflict' })
    await acme.send({ method: 'DELETE', url: `${path}/${data[0].id}` })
    t.equal(
      (await acme.send({ method: 'POST', url: path, payload: { ...input, issuer: data[1].issuer } })).statusCode,
      409
    )
    await allRows(app.database, 'delete from identity_providers')
  })

  t.test('nobody else sees them, and changes need a fresh sign-in', async (t) => {
    const id = await addProvider(acme, at.issuer)
    t.strictSame((await rival.send(path)).json(), { data: [] })
    for (const method of ['GET', 'PATCH', 'DELETE'] as const) {
      const payload = method === 'PATCH' ? { name: 'mine' } : undefined
      t.equal((await rival.send({ method, url: `${path}/${id}`, ...(payload && { payload }) })).statusCode, 404, method)
    }
    await addMember(app, acme, rival.owner.id, 'admin')
    const login = post('/auth/login', { email: rival.owner.email, password })
    const admin = (await send(app, acme.host, login)).json()
    t.match((await acme.with(admin.access_token, path)).json(), { status: 403, code: 'forbidden' })
    await allRows(
      app.database,
      "update sessions set authenticated_at = now() - interval '6 minutes' where tenant_id = $1",
      [acme.id]
    )
    for (const options of [
      { method: 'POST', url: path, payload: input },
      { method: 'PATCH', url: `${path}/${id}`, payload: { name: 'x' } },
      { method: 'DELETE', url: `${path}/${id}` }
    ] as const) {
      t.match((await acme.send(options)).json(), { status: 403, code: 'reauthentication_required' }, options.method)
    }
    await allRows(app.database, 'update sessions set authenticated_at = now()')
    await acme.send({ method: 'DELETE', url: `${path}/${id}` })
  })

  t.test('a removed provider leaves no session, no identity and no way in', async (t) => {
    const key = await addProvider(acme, at.issuer)
    t.equal((await linkAt(app, { key, at }, acme, { sub: 'o' })).statusCode, 201)
    const first = await signInAt(app, { key, at }, 'acme', { sub: 'o' })
    const tokens = (await exchange(app, first.code, first.code_verifier)).json()
    const late = await signInAt(app, { key, at }, 'acme', { sub: 'o' })
    t.equal((await acme.send({ method: 'DELETE', url: `${path}/${key}` })).statusCode, 204)
    await eventually(async () => (await acme.with(tokens.access_token, '/api/v1/users/me')).statusCode === 401, 2000)
    const refresh = post('/auth/refresh', { refresh_token: tokens.refresh_token })
    t.match((await send(app, acme.host, refresh)).json(), { code: 'session_revoked' })
    t.match((await exchange(app, late.code, late.code_verifier)).json(), { code: 'invalid_sign_in_code' })
    t.strictSame(await allRows(app.database, 'select from user_identities'), [])
    t.equal((await acme.send('/api/v1/users/me')).statusCode, 200, 'other sessions stay')
  })
})

t.test("a session through an agency's own provider stays in the agency", async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'member')
  const at = await startScriptedProvider(t)
  const key = await addProvider(acme, at.issuer)
  t.equal((await linkAt(app, { key, at }, acme, { sub: 'o' })).statusCode, 201)
  const elsewhere = (await send(app, rival.host, post('/auth/login', { email: acme.owner.email, password }))).json()
  const { code, code_verifier } = await signInAt(app, { key, at }, 'acme', { sub: 'o' })
  const { access_token } = (await exchange(app, code, code_verifier)).json()
  const document = (await acme.anonymous('/api/v1/openapi.json')).json()

  t.test('every operation on the person in all agencies refuses it', async (t) => {
    // what such a session may do with its person: each was looked at
    const allowed = new Set(['getMe', 'getMfa', 'listMySessions', 'endMySession', 'listMyTenants'])
    allowed.add('resendVerification')
    const form = { headers: { 'content-type': 'multipart/form-data; boundary=x' }, payload: '--x--' }
    let refused = 0
    for (const [url, operations] of Object.entries<Record<string, { operationId: string; 'x-authz': string }>>(
      document.paths
    )) {
      for (const [method, { operationId, ...operation }] of Object.entries(operations)) {
        if (operation['x-authz'] !== 'user' || allowed.has(operationId)) continue
        const bodies: Record<string, object> = {
          changePassword: { current_password: password, new_password: 'another correct horse' },
          changeEmail: { email: 'new@acme.example', password },
          deleteMe: { password },
          switchTenant: { tenant: 'rival' },
          createTenant: { name: 'Mine', slug: 'mine' },
          startLinking: { provider: key, redirect_to: 'http://acme.localhost:8080/', code_challenge: 'a'.repeat(43) },
          confirmLinking: { code: 'x', code_verifier: 'a'.repeat(43) },
          updateMe: { name: 'x' },
          reauthenticate: { password },
          renamePasskey: { name: 'x' },
          createPasskey: {
            name: 'x',
            passkey: {
              ...{ id: 'AQID', rawId: 'AQID', type: 'public-key' },
              response: { clientDataJSON: 'e30', attestationObject: 'oA' }
            }
          }
        }
        const payload =
          bodies[operationId] ??
          (/Totp|RecoveryCodes/.test(operationId) && operationId !== 'startTotp' ? { code: '123456' } : undefined)
        const target = url.replace(/\{[^}]+\}/g, acme.id)
        const reply = await acme.with(access_token, {
          method: method.toUpperCase() as 'GET',
          url: target,
          ...(payload && { payload }),
          ...(operationId === 'setAvatar' && form)
        })
        t.match(reply.json(), { status: 403, code: 'forbidden' }, operationId)
        refused++
      }
    }
    t.ok(refused >= 15, `${refused} operations`)
  })

  t.test('it sees and ends nothing of other agencies', async (t) => {
    const tenants = (await acme.with(access_token, '/api/v1/users/me/tenants')).json().data
    t.match(tenants, [{ slug: 'acme' }])
    t.equal(tenants.length, 1)
    const sessions = (await acme.with(access_token, '/api/v1/users/me/sessions')).json().data
    t.ok(sessions.length >= 2)
    t.ok(sessions.every((each: { tenant_slug: string }) => each.tenant_slug === 'acme'))
    const all = (await acme.send('/api/v1/users/me/sessions')).json().data
    const foreign = all.find((each: { tenant_slug: string }) => each.tenant_slug === 'rival')
    const end = { method: 'DELETE', url: `/api/v1/users/me/sessions/${foreign.id}` } as const
    t.equal((await acme.with(access_token, end)).statusCode, 404)
    t.equal((await rival.with(elsewhere.access_token, '/api/v1/users/me')).statusCode, 200)
  })

  t.test('it accepts no invitation of another agency', async (t) => {
    const third = await createTenant(app, 'third')
    const invited = await third.send(post('/invitations', { email: acme.owner.email, role: 'viewer' }))
    const { id } = invited.json()
    const token = app.oneTimeTokens.issue('invitation', { id, tenant_id: third.id, generation: 1 })
    const accept = post('/invitations/accept', { token }, { authorization: `Bearer ${access_token}` })
    t.match((await send(app, 'localhost', accept)).json(), { status: 403, code: 'forbidden' })
  })

  t.test('the version before opens no session elsewhere from it', async (t) => {
    const [session] = await allRows(
      app.database,
      'select authenticated_at::text as at from sessions where provider_id is not null'
    )
    t.equal(session.at, '-infinity')
    const copy = `insert into sessions (tenant_id, id, user_id, expires_at, authenticated_at)
      values ($1, gen_random_uuid(), $2, now() + interval '1 day', $3)`
    await t.rejects(allRows(app.database, copy, [rival.id, acme.owner.id, session.at]), {
      message: /sessions_authenticated/
    })
  })

  t.test('it is fresh after the sign-in, does what the role may, and refreshes', async (t) => {
    const made = await acme.with(access_token, { method: 'POST', url: path, payload: input })
    t.equal(made.statusCode, 201, made.body)
    await allRows(
      app.database,
      "update sessions set provider_at = now() - interval '6 minutes' where provider_id is not null"
    )
    const removal = { method: 'DELETE', url: `${path}/${made.json().id}` } as const
    t.match((await acme.with(access_token, removal)).json(), { code: 'reauthentication_required' })
    const back = await signInAt(app, { key, at }, 'acme', { sub: 'o' })
    const fresh = (await exchange(app, back.code, back.code_verifier)).json()
    t.equal((await acme.with(fresh.access_token, removal)).statusCode, 204, 'after another sign-in there')
    const again = await acme.with(fresh.access_token, {
      method: 'POST',
      url: '/api/v1/auth/switch',
      payload: { tenant: 'rival' }
    })
    t.match(again.json(), { status: 403, code: 'forbidden' }, 'which leads nowhere else')
  })
})

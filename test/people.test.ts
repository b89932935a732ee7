import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import t from 'tap'
import {
  allRows,
  createTenant,
  eventually,
  mailedTokens,
  mailsTo,
  password,
  post,
  send,
  setStatus,
  startApp,
  type Tenant,
  type TestApp,
  type Tokens
} from './harness.ts'

const patch = (url: string, payload: object) => ({ method: 'PATCH', url: `/api/v1${url}`, payload }) as const
const remove = (url: string) => ({ method: 'DELETE', url: `/api/v1${url}` }) as const

/** Runs `act`, and resolves to the token in the one mail that it causes. */
async function mailedBy(app: TestApp, email: string, act: () => Promise<unknown>): Promise<string> {
  const before = mailedTokens(app, email).length
  await act()
  await eventually(() => mailedTokens(app, email).length > before)
  return mailedTokens(app, email).at(-1) as string
}

/** Invites an address. Resolves to the mailed token. */
function invite(app: TestApp, tenant: Tenant, email: string, role: string): Promise<string> {
  return mailedBy(app, email, async () => {
    const invited = await tenant.send(post('/invitations', { email, role }))
    if (invited.statusCode !== 201) throw new Error(invited.body)
  })
}

/** Invites a new person, who accepts. */
async function join(app: TestApp, tenant: Tenant, email: string, role: string) {
  const token = await invite(app, tenant, email, role)
  const accepted = await tenant.anonymous(post('/invitations/accept', { token, name: `New ${role}`, password }))
  if (accepted.statusCode !== 200) throw new Error(accepted.body)
  const tokens: Tokens = accepted.json()
  const claims = JSON.parse(Buffer.from(tokens.access_token.split('.')[1] as string, 'base64url').toString())
  return { id: claims.user_id as string, email, tokens }
}

t.test('invitations', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const adaToken = () => mailedTokens(app, 'ada@example.com').at(-1) as string

  t.test('an admin invites somebody, and the token is in the mail and nowhere else', async (t) => {
    const reply = await acme.send(post('/invitations', { email: 'Ada@Example.com', role: 'member' }))
    t.equal(reply.statusCode, 201)
    t.match(reply.json(), { email: 'ada@example.com', role: 'member', invited_by: acme.owner.id })
    t.notHas(reply.json(), 'token')
    await eventually(() => mailedTokens(app, 'ada@example.com').length === 1)
    const token = adaToken()
    t.notMatch(JSON.stringify(await allRows(app.database, 'select * from invitations, outbox')), token)
    const [mail] = mailsTo(app, 'ada@example.com')
    t.match(mail?.subject, 'Owner of acme invites you to The acme agency')
    t.match(mail?.text, 'http://acme.localhost:8080/invitations/accept?token=')
  })
  t.test('nobody is invited twice, and members are not invited', async (t) => {
    const again = await acme.send(post('/invitations', { email: 'ada@example.com', role: 'viewer' }))
    t.match(again.json(), { status: 409, code: 'already_invited' })
    const member = await acme.send(post('/invitations', { email: acme.owner.email, role: 'viewer' }))
    t.match(member.json(), { status: 409, code: 'already_a_member' })
    const many = await Promise.all(
      Array.from({ length: 20 }, () => acme.send(post('/invitations', { email: 'many@example.com', role: 'viewer' })))
    )
    t.equal(many.filter(({ statusCode }) => statusCode === 201).length, 1)
  })
  t.test('another agency sees none of it', async (t) => {
    t.strictSame((await rival.send('/api/v1/invitations')).json().data, [])
    const [{ id }] = (await acme.send('/api/v1/invitations')).json().data
    t.match((await rival.send(remove(`/invitations/${id}`))).json(), { status: 404, code: 'not_found' })
    t.match((await rival.send(post(`/invitations/${id}/resend`, undefined))).json(), { code: 'not_found' })
    const token = adaToken()
    const there = await rival.anonymous(post('/invitations/accept', { token, name: 'Ada', password }))
    t.match(there.json(), { status: 404, code: 'not_found' })
  })
  t.test('an owner is not made by mail', async (t) => {
    t.equal((await acme.send(post('/invitations', { email: 'x@example.com', role: 'owner' }))).statusCode, 400)
  })
  t.test('sent again, the token before stops being good', async (t) => {
    const old = adaToken()
    const [{ id }] = (await acme.send('/api/v1/invitations?limit=100'))
      .json()
      .data.filter((each: { email: string }) => each.email === 'ada@example.com')
    t.equal((await acme.send(post(`/invitations/${id}/resend`, undefined))).statusCode, 202)
    await eventually(() => adaToken() !== old)
    const late = await acme.anonymous(post('/invitations/accept', { token: old, name: 'Ada', password }))
    t.match(late.json(), { status: 410, code: 'invitation_expired' })
  })
  t.test('a new person says name and password, both at once', async (t) => {
    const token = adaToken()
    const reply = await acme.anonymous(post('/invitations/accept', { token }))
    t.strictSame(
      reply.json().errors.map((each: { path: string }) => each.path),
      ['/body/name', '/body/password']
    )
    const bad = await acme.anonymous(post('/invitations/accept', { token, name: 'Ada', password: 'short' }))
    t.match(bad.json(), { status: 400, code: 'validation_failed' })
  })
  t.test('and becomes a member', async (t) => {
    const accept = post('/invitations/accept', { token: adaToken(), name: 'Ada', password })
    const accepted = await send(app, 'localhost', accept)
    t.equal(accepted.statusCode, 200)
    const memberships = 'select m.role from memberships m join users u on u.id = m.user_id where u.email = $1'
    t.strictSame(await allRows(app.database, memberships, ['ada@example.com']), [{ role: 'member' }])
    const me = await acme.with(accepted.json().access_token, '/api/v1/users/me')
    t.match(me.json(), { email: 'ada@example.com', role: 'member', email_verified: true })
  })
  t.test('who has an account accepts with its password or its bearer, and nobody else does', async (t) => {
    const token = await invite(app, acme, rival.owner.email, 'viewer')
    const accept = (body: object, headers = {}) =>
      send(app, 'localhost', post('/invitations/accept', { token, ...body }, headers))
    t.match((await accept({})).json(), { status: 400 })
    t.match((await accept({ password: 'not the right one' })).json(), { status: 401, code: 'invalid_credentials' })
    const stranger = { authorization: `Bearer ${acme.owner.tokens.access_token}` }
    t.match((await accept({}, stranger)).json(), { status: 403, code: 'forbidden' })
    const accepted = await accept({}, { authorization: `Bearer ${rival.owner.tokens.access_token}` })
    t.equal(accepted.statusCode, 200)
    const me = await acme.with(accepted.json().access_token, '/api/v1/users/me')
    t.match(me.json(), { tenant_id: acme.id, role: 'viewer' })
    t.match((await accept({ password })).json(), { status: 410, code: 'invitation_expired' })
  })
  t.test('an agency that is suspended takes nobody in', async (t) => {
    const other = await createTenant(app, 'sleeping')
    const token = await invite(app, other, 'sleeper@example.com', 'member')
    await setStatus(app, other, 'suspended')
    const reply = await send(app, 'localhost', post('/invitations/accept', { token, name: 'S', password }))
    t.match(reply.json(), { status: 403, code: 'tenant_suspended' })
  })
  t.test('one ends with what its author may give', async (t) => {
    const entryOf = async (email: string) => {
      const { data } = (await acme.send('/api/v1/invitations?limit=100')).json()
      return data.find((each: { email: string }) => each.email === email)
    }
    const accept = (token: string) => acme.anonymous(post('/invitations/accept', { token, name: 'N', password }))
    const gone = { status: 410, code: 'invitation_expired' }
    const endings: Record<string, (author: string) => Promise<unknown>> = {
      demoted: (author) => acme.send(patch(`/members/${author}`, { role: 'member' })),
      removed: (author) => acme.send(remove(`/members/${author}`)),
      disabled: (author) => allRows(app.database, 'update users set disabled_at = now() where id = $1', [author])
    }
    for (const [how, end] of Object.entries(endings)) {
      const author = await join(app, acme, `${how}@example.com`, 'admin')
      const email = `friend-of-${how}@example.com`
      const token = await mailedBy(app, email, () =>
        acme.with(author.tokens.access_token, post('/invitations', { email, role: 'admin' }))
      )
      t.match(await entryOf(email), { valid: true, invited_by: author.id })
      await end(author.id)
      t.match((await accept(token)).json(), gone, how)
      t.match(await entryOf(email), { valid: false, role: 'admin' }, `${how}: it is there to be sent again or revoked`)
      if (how === 'removed') {
        const again = await invite(app, acme, email, 'viewer')
        t.match((await accept(token)).json(), gone, 'it makes room for another, and stays dead')
        t.equal((await accept(again)).statusCode, 200)
        continue
      }
      const { id } = await entryOf(email)
      const again = await mailedBy(app, email, () => acme.send(post(`/invitations/${id}/resend`, undefined)))
      t.match(await entryOf(email), { valid: true, invited_by: acme.owner.id }, 'whoever sends it again vouches for it')
      t.match((await accept(token)).json(), gone)
      t.equal((await accept(again)).statusCode, 200)
    }
  })
  t.test('nor is it mailed once its author is gone', async (t) => {
    const author = await join(app, acme, 'hasty@example.com', 'admin')
    const { id } = (
      await acme.with(author.tokens.access_token, post('/invitations', { email: 'never@example.com', role: 'admin' }))
    ).json()
    await eventually(() => mailedTokens(app, 'never@example.com').length === 1)
    await acme.send(remove(`/members/${author.id}`))
    // as if the mail had not been sent yet
    await allRows(app.database, 'update outbox set sent_at = null, due_at = now() where subject_id = $1', [id])
    app.mail.wake()
    await eventually(async () => {
      const rows = await allRows(app.database, 'select dropped_at, sent_at from outbox where subject_id = $1', [id])
      return rows.length === 0 || rows[0].dropped_at !== null
    })
    t.equal(mailedTokens(app, 'never@example.com').length, 1)
  })
  t.test('a revoked, an expired and a forged one are refused', async (t) => {
    const idOf = async (email: string) => {
      const { data } = (await acme.send('/api/v1/invitations?limit=100')).json()
      return data.find((each: { email: string }) => each.email === email)?.id
    }
    const accept = (token: string) => acme.anonymous(post('/invitations/accept', { token, name: 'N', password }))
    const token = await invite(app, acme, 'revoked@example.com', 'member')
    t.equal((await acme.send(remove(`/invitations/${await idOf('revoked@example.com')}`))).statusCode, 204)
    t.match((await accept(token)).json(), { status: 410, code: 'invitation_expired' })

    const lateToken = await invite(app, acme, 'late@example.com', 'member')
    const late = await idOf('late@example.com')
    await allRows(app.database, "update invitations set expires_at = now() - interval '1 s' where id = $1", [late])
    t.match((await accept(lateToken)).json(), { status: 410, code: 'invitation_expired' })
    await invite(app, acme, 'late@example.com', 'member')
    t.equal(await idOf('late@example.com'), late, 'an expired one makes room for a new one')
    t.match((await accept(lateToken)).json(), { status: 410, code: 'invitation_expired' }, 'and its token stays dead')

    for (let i = 0; i < 200; i++) {
      const at = Math.floor(Math.random() * lateToken.length)
      const other = lateToken[at] === 'A' ? 'B' : 'A'
      const forged = lateToken.slice(0, at) + other + lateToken.slice(at + 1)
      if ((await accept(forged)).statusCode !== 404) t.fail(`accepted ${forged}`)
    }
    t.match((await accept(acme.owner.tokens.refresh_token)).json(), { status: 404, code: 'not_found' })
  })
})

t.test('members', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const admin = await join(app, acme, 'admin@acme.example', 'admin')
  const member = await join(app, acme, 'member@acme.example', 'member')
  const viewer = await join(app, acme, 'viewer@acme.example', 'viewer')
  const as = (person: { tokens: Tokens }, options: Parameters<Tenant['send']>[0]) =>
    acme.with(person.tokens.access_token, options)

  t.test('everybody in the agency sees the people, page by page', async (t) => {
    const seen: string[] = []
    let cursor = ''
    for (let page = 0; page < 10 && cursor !== 'null'; page++) {
      const reply = await as(viewer, `/api/v1/members?limit=1${cursor && `&cursor=${cursor}`}`)
      seen.push(...reply.json().data.map((each: { email: string }) => each.email))
      cursor = String(reply.json().next_cursor)
    }
    t.strictSame(seen.sort(), [admin.email, member.email, acme.owner.email, viewer.email].sort())
    t.match((await rival.send(`/api/v1/members/${member.id}`)).json(), { status: 404, code: 'not_found' })
    t.strictSame((await rival.send('/api/v1/members')).json().data.length, 1)
  })
  t.test('nobody acts above their own role', async (t) => {
    t.match((await as(admin, patch(`/members/${member.id}`, { role: 'owner' }))).json(), { code: 'forbidden' })
    t.match((await as(admin, patch(`/members/${acme.owner.id}`, { role: 'viewer' }))).json(), { code: 'forbidden' })
    t.match((await as(admin, remove(`/members/${acme.owner.id}`))).json(), { code: 'forbidden' })
    t.match((await as(admin, remove(`/members/${acme.owner.id}/sessions`))).json(), { code: 'forbidden' })
    t.match((await as(member, remove(`/members/${viewer.id}`))).json(), { code: 'forbidden' })
    t.match((await as(member, patch(`/members/${viewer.id}`, { role: 'member' }))).json(), { code: 'forbidden' })
    t.match((await as(member, '/api/v1/invitations')).json(), { code: 'forbidden' })
    t.match((await as(member, '/api/v1/audit-events')).json(), { code: 'forbidden' })
  })
  t.test('another agency can not act on them', async (t) => {
    for (const request of [
      patch(`/members/${member.id}`, { role: 'viewer' }),
      remove(`/members/${member.id}`),
      remove(`/members/${member.id}/sessions`)
    ]) {
      t.match((await rival.send(request)).json(), { status: 404, code: 'not_found' })
    }
  })
  t.test('a new role is in force at once, and refreshing gives it', async (t) => {
    t.match((await as(admin, patch(`/members/${member.id}`, { role: 'admin' }))).json(), { role: 'admin' })
    t.match((await as(member, '/api/v1/users/me')).json(), { status: 401, code: 'token_expired' })
    const refreshed = await acme.anonymous(post('/auth/refresh', { refresh_token: member.tokens.refresh_token }))
    member.tokens = refreshed.json()
    t.match((await as(member, '/api/v1/users/me')).json(), { role: 'admin' })
    await as(admin, patch(`/members/${member.id}`, { role: 'member' }))
    t.match((await as(member, '/api/v1/invitations')).json(), { status: 401, code: 'token_expired' })
  })
  t.test('the last owner stays, also when two demote each other in the same moment', async (t) => {
    const alone = await acme.send(patch(`/members/${acme.owner.id}`, { role: 'admin' }))
    t.match(alone.json(), { status: 409, code: 'last_owner' })
    t.match((await acme.send(remove(`/members/${acme.owner.id}`))).json(), { status: 409, code: 'last_owner' })
    for (let round = 0; round < 5; round++) {
      const agency = await createTenant(app, `duel-${round}`)
      const second = await join(app, agency, `second-${round}@example.com`, 'admin')
      await agency.send(patch(`/members/${second.id}`, { role: 'owner' }))
      const fresh = (
        await agency.anonymous(post('/auth/refresh', { refresh_token: second.tokens.refresh_token }))
      ).json()
      const [one, two] = await Promise.all([
        agency.send(patch(`/members/${second.id}`, { role: 'viewer' })),
        agency.with(fresh.access_token, patch(`/members/${agency.owner.id}`, { role: 'viewer' }))
      ])
      const owners = await allRows(
        app.database,
        "select user_id from memberships where tenant_id = $1 and role = 'owner'",
        [agency.id]
      )
      t.equal(owners.length, 1, `${one.statusCode} ${two.statusCode}`)
    }
  })
  t.test('who is signed out by an admin is out of this agency only', async (t) => {
    const elsewhere = await createTenant(app, 'elsewhere')
    const token = await invite(app, elsewhere, viewer.email, 'viewer')
    const there = await elsewhere.anonymous(post('/invitations/accept', { token, password }))
    t.equal(there.statusCode, 200)
    t.equal((await as(admin, remove(`/members/${viewer.id}/sessions`))).statusCode, 204)
    t.match((await as(viewer, '/api/v1/users/me')).json(), { code: 'session_revoked' })
    t.equal((await elsewhere.with(there.json().access_token, '/api/v1/users/me')).statusCode, 200)
  })
  t.test('a removed member is out, and coming back in the same role brings no old token back', async (t) => {
    const before = (await acme.anonymous(post('/auth/login', { email: viewer.email, password }))).json()
    t.equal((await as(admin, remove(`/members/${viewer.id}`))).statusCode, 204)
    t.match((await acme.with(before.access_token, '/api/v1/users/me')).json(), { code: 'session_revoked' })
    t.match((await acme.anonymous(post('/auth/login', { email: viewer.email, password }))).json(), {
      code: 'invalid_credentials'
    })
    const token = await invite(app, acme, viewer.email, 'viewer')
    const back = await acme.anonymous(post('/invitations/accept', { token, password }))
    t.equal(back.statusCode, 200, back.body)
    t.equal((await acme.with(back.json().access_token, '/api/v1/users/me')).statusCode, 200)
    t.match((await acme.with(before.access_token, '/api/v1/users/me')).json(), { code: 'session_revoked' })
    viewer.tokens = back.json()
  })
  t.test('everybody may leave', async (t) => {
    t.equal((await as(viewer, remove(`/members/${viewer.id}`))).statusCode, 204)
    t.match((await as(viewer, '/api/v1/users/me')).json(), { code: 'session_revoked' })
  })
  t.test('ownership is handed over in one step', async (t) => {
    t.match((await as(admin, post('/tenant/transfer', { user_id: member.id }))).json(), { code: 'forbidden' })
    const stranger = await acme.send(post('/tenant/transfer', { user_id: rival.owner.id }))
    t.match(stranger.json(), { status: 404, code: 'not_found' })
    t.equal((await acme.send(post('/tenant/transfer', { user_id: admin.id }))).statusCode, 204)
    const rows = await allRows(app.database, 'select user_id, role from memberships where tenant_id = $1', [acme.id])
    t.match(
      rows.filter(({ role }) => role === 'owner').map(({ user_id }) => user_id),
      [admin.id]
    )
    t.match((await acme.send('/api/v1/users/me')).json(), { code: 'token_expired' })
  })
})

t.test('the audit log', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const member = await join(app, acme, 'member@acme.example', 'member')
  await acme.send({
    ...patch(`/members/${member.id}`, { role: 'viewer' }),
    headers: { 'user-agent': 'a phone', 'x-request-id': 'request-1' }
  })

  t.test('says who did what, from where, and what changed', async (t) => {
    const { data } = (await acme.send('/api/v1/audit-events?action=member.role_changed')).json()
    t.equal(data.length, 1)
    t.match(data[0], {
      actor_id: acme.owner.id,
      target_id: member.id,
      ip: '127.0.0.1',
      user_agent: 'a phone',
      request_id: 'request-1',
      detail: { before: { role: 'member' }, after: { role: 'viewer' } }
    })
  })
  t.test('is read page by page in one order, and a cursor fits its own filters only', async (t) => {
    const all = (await acme.send('/api/v1/audit-events?limit=100')).json().data.map((each: { id: string }) => each.id)
    const seen: string[] = []
    let cursor: string | null = ''
    while (cursor !== null) {
      const reply: { data: { id: string }[]; next_cursor: string | null } = (
        await acme.send(`/api/v1/audit-events?limit=2${cursor && `&cursor=${cursor}`}`)
      ).json()
      seen.push(...reply.data.map(({ id }) => id))
      if (reply.next_cursor) {
        const other = await acme.send(`/api/v1/audit-events?action=x&cursor=${reply.next_cursor}`)
        t.match(other.json(), { status: 400, code: 'invalid_cursor' })
        t.match((await rival.send(`/api/v1/audit-events?cursor=${reply.next_cursor}`)).json(), {
          code: 'invalid_cursor'
        })
      }
      cursor = reply.next_cursor
    }
    t.strictSame(seen, all)
    t.ok(all.length >= 4)
  })
  t.test('filters by actor and time', async (t) => {
    const by = (query: string) => acme.send(`/api/v1/audit-events?${query}`).then((reply) => reply.json().data.length)
    t.ok((await by(`actor_id=${member.id}`)) >= 1)
    t.equal(await by('to=2020-01-01T00:00:00Z'), 0)
    t.equal(await by('from=2999-01-01T00:00:00Z'), 0)
  })
  t.test('records what was refused, in the agency of who tried', async (t) => {
    const fresh = await acme.anonymous(post('/auth/refresh', { refresh_token: member.tokens.refresh_token }))
    const viewer = fresh.json().access_token
    await acme.with(viewer, patch('/tenant', { name: 'Mine' }))
    await acme.with(rival.owner.tokens.access_token, '/api/v1/members')
    const denials = (tenant: Tenant) =>
      tenant.send('/api/v1/audit-events?action=authz.denied').then((r) => r.json().data)
    await eventually(async () => (await denials(acme)).length === 1 && (await denials(rival)).length === 1)
    t.match(await denials(acme), [{ actor_id: member.id, detail: { method: 'PATCH', route: '/api/v1/tenant' } }])
    t.match(await denials(rival), [{ actor_id: rival.owner.id, detail: { method: 'GET', route: '/api/v1/members' } }])
  })
  t.test('records what was refused also to who does not wait for it', async (t) => {
    const denials = () => rival.send('/api/v1/audit-events?action=authz.denied').then((r) => r.json().data.length)
    const before = await denials()
    const { query } = app.gate
    let asked = false
    app.gate.query = async (scope, statement, values) => {
      if (statement.name === 'find_tenant') {
        asked = true
        await once(socket, 'close')
      }
      return query(scope, statement, values)
    }
    app.tenants.created('acme')
    await app.listen({ port: 0, host: '127.0.0.1' })
    const socket = connect((app.server.address() as AddressInfo).port, '127.0.0.1')
    const authorization = `Bearer ${rival.owner.tokens.access_token}`
    socket.write(`GET /api/v1/members HTTP/1.1\r\nHost: acme.localhost\r\nAuthorization: ${authorization}\r\n\r\n`)
    await eventually(() => asked)
    socket.destroy()
    await t.resolves(eventually(async () => (await denials()) === before + 1))
    app.gate.query = query
  })
  t.test('is exported whole, line by line, and of one agency only', async (t) => {
    const reply = await acme.send('/api/v1/audit-events/export')
    t.equal(reply.headers['content-type'], 'application/x-ndjson; charset=utf-8')
    const lines = reply.body
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line))
    const list = (await acme.send('/api/v1/audit-events?limit=100')).json().data
    t.strictSame(lines, list)
    t.notMatch((await rival.send('/api/v1/audit-events/export')).body, member.id)
  })
})

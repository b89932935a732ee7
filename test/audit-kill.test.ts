import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import {
  allRows,
  createTestDatabase,
  eventually,
  password,
  type Server,
  startServer,
  testEnvironment
} from './harness.ts'

// rehearsal: processes are killed while they write audit events

type Call = (method: string, path: string, body?: object) => Promise<number>

/** A client. Its calls resolve to the status, or to 0 if the server died before it answered. */
function client(server: Server, token?: string): Call {
  return async (method, path, body) => {
    try {
      const reply = await server.fetch(`/api/v1${path}`, {
        method,
        headers: {
          ...(body && { 'content-type': 'application/json' }),
          ...(token !== undefined && { authorization: `Bearer ${token}` })
        },
        ...(body && { body: JSON.stringify(body) })
      })
      await reply.arrayBuffer()
      return reply.status
    } catch {
      return 0
    }
  }
}

t.test('an audit row exists exactly when its change does, however often the process is killed', async (t) => {
  const database = await createTestDatabase(t)
  const env = testEnvironment(database, { SMTP_URL: 'smtp://127.0.0.1:9' })
  let names = 0
  let acknowledged = 0

  for (let round = 0; round < 5; round++) {
    const server = await startServer(t, env)
    const registered = await server.fetch('/api/v1/auth/register', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({
        tenant: { name: 'Agency', slug: `agency-${round}` },
        name: 'Owner',
        email: `owner-${round}@example.com`,
        password
      })
    })
    const { access_token } = (await registered.json()) as { access_token: string }
    const call = client(server, access_token)
    let running = true
    const worker = async (id: number) => {
      while (running) {
        const n = ++names
        const status =
          id === 0
            ? await call('PATCH', '/users/me', { name: `Name ${n}` })
            : id === 1
              ? await call('PATCH', '/tenant', { name: `Agency ${n}` })
              : await call('POST', '/invitations', { email: `person-${n}@example.com`, role: 'viewer' })
        if (status === 200 || status === 201) acknowledged++
      }
    }
    const workers = [0, 1, 2, 3].map(worker)
    await sleep(150 + Math.random() * 350)
    // on a busy machine the first changes take longer
    await eventually(() => acknowledged > 2 * (round + 1))
    server.child.kill('SIGKILL')
    running = false
    await Promise.all([...workers, server.exited])
  }

  const [counts] = await allRows(
    database,
    `select
      (select sum(version - 1)::int from users) as renamed,
      (select count(*)::int from audit_events where action = 'user.updated') as rename_events,
      (select sum(version - 1)::int from tenants) as tenants,
      (select count(*)::int from audit_events where action = 'tenant.updated') as tenant_events,
      (select count(*)::int from invitations) as invitations,
      (select count(*)::int from outbox) as mails,
      (select count(*)::int from invitations i join audit_events a
        on a.tenant_id = i.tenant_id and a.target_id = i.id and a.action = 'invitation.created') as invitation_events,
      (select count(*)::int from audit_events where action = 'invitation.created') as all_invitation_events`
  )
  t.equal(counts?.rename_events, counts?.renamed)
  t.equal(counts?.tenant_events, counts?.tenants)
  t.equal(counts?.invitation_events, counts?.invitations)
  t.equal(counts?.all_invitation_events, counts?.invitations)
  t.equal(counts?.mails, counts?.invitations)
  const changes = (counts?.renamed ?? 0) + (counts?.tenants ?? 0) + (counts?.invitations ?? 0)
  t.ok(acknowledged > 10, `${acknowledged} changes were acknowledged`)
  t.ok(changes >= acknowledged, 'and all of them are there')
})

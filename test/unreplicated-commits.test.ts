import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { requireStandby, startCluster } from './cluster.ts'
import { type Answer, type Request, send } from './failover-writers.ts'
import { announce } from './file-requests.ts'
import { allRows, eventually, password, startServer, testEnvironment } from './harness.ts'
import { registerAgency } from './oracle.ts'
import { urlsOf } from './stand.ts'

// rehearsal: commits that a synchronous standby does not have

/*
 * A commit that only the primary has: its synchronous standby is away. PostgreSQL shows such a commit to everybody once nobody waits
 * for the standby any more: after the wait was cancelled, and after a restart. A failover to the standby would lose it. So
 * nothing of it is acknowledged, also not to a client that asks again.
 */

async function startWorld(t: Test) {
  const primary = await startCluster(t)
  const standby = await primary.addStandby()
  await requireStandby(primary)
  const server = await startServer(t, testEnvironment({ ...urlsOf(primary), serving: primary.url('aggios_app') }))
  await registerAgency(server.url, 'acme')
  const credentials = { email: 'owner@acme.example', password }
  const signIn = async () => {
    const { body } = await send(server.url, { method: 'POST', path: '/auth/login', body: credentials })
    return { access: String(body.access_token), refresh: String(body.refresh_token) }
  }
  const { access: token } = await signIn()
  return { primary, standby, token, signIn, ask: (request: Request) => send(server.url, request) }
}

const invitation = (token: string, name: string): Request => ({
  ...{ method: 'POST', path: '/invitations', token, headers: { 'idempotency-key': name } },
  body: { email: `${name}@example.com`, role: 'viewer' }
})

/** Completes a direct upload. Resolves to the request that did, which a client may send again. */
async function completeUpload(ask: (request: Request) => Promise<Answer>, token: string): Promise<Request> {
  const body = announce('notes')
  const begun = (await ask({ method: 'POST', path: '/files/uploads', token, body })).body
  const put = await fetch(String(begun.url), {
    method: 'PUT',
    headers: { 'content-type': 'text/plain' },
    body: 'notes'
  })
  const request = { method: 'POST', path: `/files/${begun.id}/complete`, token }
  const { status } = await ask(request)
  if (put.status !== 204 || status !== 200) throw new Error(`${put.status} ${status}`)
  return request
}

t.test('a commit that the standby does not have', async (t) => {
  const { primary, standby, token, signIn, ask } = await startWorld(t)
  const database = urlsOf(primary)
  const upload = await completeUpload(ask, token)
  const offset = {
    ...upload,
    method: 'HEAD',
    path: upload.path.replace(/files\/(.*)\/complete/, 'files/resumable/$1/content')
  }
  const requests: Record<string, Request> = {
    invitation: invitation(token, 'ada'),
    'sign-out': { method: 'POST', path: '/auth/logout', token: (await signIn()).access }
  }
  const { refresh: refresh_token } = await signIn()
  const refresh: Request = { method: 'POST', path: '/auth/refresh', body: { refresh_token } }
  t.equal((await ask(refresh)).status, 200)
  const counted = `select (select count(*)::int from invitations) as invitations,
    (select count(*)::int from audit_events where action = 'session.ended') as ended`

  async function isUnknownFor(t: Test, named: Record<string, Request>): Promise<void> {
    const asked = Object.entries(named).map(async ([what, request]) => {
      const { status, body, headers } = await ask(request)
      // the reply to HEAD has no body
      const code = request.method === 'HEAD' ? 'unavailable' : body.code
      const unknown = status === 503 && headers.has('retry-after') && code === 'unavailable'
      t.ok(unknown, `${what}: ${status} ${JSON.stringify(body)}`)
    })
    await Promise.all(asked)
  }
  await standby.kill('SIGQUIT')

  await t.test('is not acknowledged when an operator cancels the wait', async (t) => {
    let cancelling = true
    const canceller = (async () => {
      while (cancelling) {
        await allRows(database, "select pg_cancel_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
        await sleep(50)
      }
    })()
    await isUnknownFor(t, requests)
    cancelling = false
    await canceller
    t.strictSame(await allRows(database, counted), [{ invitations: 1, ended: 1 }], 'although the primary shows it')
  })

  await t.test('is not acknowledged to a client that asks again', (t) =>
    isUnknownFor(t, { ...requests, upload, offset, refresh })
  )

  await t.test('is not acknowledged after a restart of the primary', async (t) => {
    const late = { invitation: invitation(token, 'grace') }
    await isUnknownFor(t, late)
    t.strictSame(await allRows(database, counted), [{ invitations: 1, ended: 1 }], 'nobody sees it while it waits')
    await primary.kill('SIGQUIT')
    await primary.start()
    await eventually(async () => (await ask({ method: 'GET', path: '/tenant', token })).status === 200)
    t.strictSame(await allRows(database, counted), [{ invitations: 2, ended: 1 }])
    await isUnknownFor(t, { ...late, ...requests })
  })

  await t.test('is acknowledged once the standby has it', async (t) => {
    await standby.start()
    const invited = async (name: string) => {
      const { status, headers } = await ask(invitation(token, name))
      return status === 201 && headers.get('idempotency-replayed') === 'true'
    }
    await eventually(() => invited('ada'))
    t.ok(await invited('grace'))
    t.equal((await ask(requests['sign-out'] as Request)).status, 204)
    t.equal((await ask(upload)).status, 200)
    t.equal((await ask(offset)).headers.get('upload-offset'), '5')
    t.strictSame(await allRows(urlsOf(standby), counted), [{ invitations: 2, ended: 1 }])
  })
})

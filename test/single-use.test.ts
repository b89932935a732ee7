import t from 'tap'
import { allRows, createTenant, eventually, type Server, startApp, startServer, testEnvironment } from './harness.ts'
import { sharedRpId } from './passkey-device.ts'
import { clientId, clientSecret, createVerifier, linkAt, page, startScriptedProvider, startUrl } from './providers.ts'
import { kinds, makeSingle, type Redemption, type Single } from './single-use-kinds.ts'

/*
 * What is good once is good once in all processes, and a process that is killed leaves nothing half done.
 */

const parallel = 50
/** One person has half of the connections: on a busy machine some requests wait too long. */
const busy = 503

t.test('what is good once', async (t) => {
  const google = await startScriptedProvider(t)
  const env = {
    ...{ GOOGLE_CLIENT_ID: clientId, GOOGLE_CLIENT_SECRET: clientSecret, GOOGLE_ISSUER: google.issuer },
    ...{ ...sharedRpId, API_URL: 'http://localhost:8080', APP_URL: 'http://{slug}.localhost:8080' }
  }
  const app = await startApp(t, env)
  const world = { app, google }
  const start = () => startServer(t, testEnvironment(app.database, env))
  const servers = await Promise.all([start(), start()])

  /** The status of the reply. Undefined: there was none. */
  async function redeem({ port }: Server, { method = 'POST', path, headers, body }: Redemption) {
    try {
      const reply = await fetch(`http://localhost:${port}/api/v1${path}`, {
        ...{ method, redirect: 'manual', headers: { ...headers, ...(body && { 'content-type': 'application/json' }) } },
        ...(body && { body: JSON.stringify(body) })
      })
      await reply.arrayBuffer()
      return reply.status
    } catch {
      return undefined
    }
  }
  const at = (index: number) => servers[index % 2] as Server

  for (const [index, kind] of kinds.entries()) {
    await t.test(`${kind.title}: of ${parallel} redemptions at once in two processes one succeeds`, async (t) => {
      const single = await makeSingle(world, kind, `race-${index}`)
      const replies = Array.from({ length: parallel }, (_, each) => redeem(at(each), single.redeem(each)))
      const statuses = await Promise.all(replies)
      const [success, refusal] = kind.statuses
      t.equal(statuses.filter((status) => status === success).length, 1)
      t.ok(statuses.includes(refusal))
      t.strictSame(
        statuses.filter((status) => status !== success && status !== refusal && status !== busy),
        []
      )
      t.ok((await single.effects()) <= 1)
    })
  }

  for (const share of [0, 0.4]) {
    await t.test(`of all kinds, when a process is killed after ${share * 100} % of the replies`, async (t) => {
      const [dying, living] = servers as [Server, Server]
      const each = 8
      const singles: Single[] = []
      // backwards, because whatever has to do with a provider verifies every address
      for (const [index, kind] of [...kinds.entries()].toReversed()) {
        singles.unshift(await makeSingle(world, kind, `kill-${share * 10}-${index}`))
      }
      let answered = 0
      const ask = async (server: Server, redemption: Redemption) => {
        const status = await redeem(server, redemption)
        if (++answered > share * each * kinds.length) dying.child.kill('SIGKILL')
        return status
      }
      const all = singles.map((single) =>
        Promise.all(Array.from({ length: each }, (_, n) => ask(n % 2 ? living : dying, single.redeem(n))))
      )
      const statuses = await Promise.all(all)
      await dying.exited
      t.ok(statuses.flat().includes(undefined), 'some got no answer')
      for (const [index, kind] of kinds.entries()) {
        const [success, refusal] = kind.statuses
        const known = (statuses[index] as (number | undefined)[]).filter((status) => status !== undefined)
        const successes = known.filter((status) => status === success).length
        t.strictSame(
          known.filter((status) => status !== success && status !== refusal && status !== busy),
          [],
          kind.title
        )
        const single = singles[index] as Single
        const before = await single.effects()
        let again = await redeem(living, single.redeem(each))
        for (let n = 0; n < 20 && again === busy; n++) again = await redeem(living, single.redeem(each))
        t.ok(again === success || again === refusal, `${kind.title}: ${again}`)
        t.ok(successes + (again === success ? 1 : 0) <= 1, `${kind.title}: at most one is told of a success`)
        const after = await single.effects()
        if (kind.undone) t.ok(after <= 1, `${kind.title}: what it opened is there once at most`)
        else if (!kind.lossy) t.equal(after, 1, `${kind.title}: it has had its effect once`)
        else t.ok(after <= 1, `${kind.title}: it has had its effect once, or not at all`)
        if (before === 1) t.equal(again, refusal, `${kind.title}: not again`)
      }
      servers.splice(0, 2, living, await start())
    })
  }

  await t.test('a process that is killed while a provider is asked leaves no session', async (t) => {
    const acme = await createTenant(app, 'acme')
    await linkAt(app, { key: 'google', at: google }, acme, { sub: 'ada' })
    const { code_challenge } = createVerifier()
    const started = await fetch(
      `http://localhost:${at(0).port}${startUrl('google', 'acme', code_challenge, page('acme'))}`,
      {
        redirect: 'manual'
      }
    )
    const back = new URL(google.authorize(started.headers.get('location') as string, { sub: 'ada' }))
    const cookie = started.headers.getSetCookie()[0]?.split(';', 1)[0] as string
    const comeBack: Redemption = {
      method: 'GET',
      path: (back.pathname + back.search).replace('/api/v1', ''),
      headers: { cookie }
    }
    const sessions = () => allRows(app.database, 'select id from sessions where user_id = $1', [acme.owner.id])
    const before = await sessions()
    google.script.answer = (path) => path === '/token'
    const asked = google.requests.length
    const broken = redeem(at(0), comeBack)
    await eventually(() => google.requests.slice(asked).includes('/token'))
    at(0).child.kill('SIGKILL')
    t.equal(await broken, undefined)
    delete google.script.answer
    t.equal(await redeem(at(1), comeBack), 400, 'the answer was used')
    t.strictSame(await sessions(), before)
  })

  await t.test('the marks of what was used are swept', async (t) => {
    t.not((await allRows(app.database, 'select from one_time_marks')).length, 0)
    await allRows(app.database, "update one_time_marks set expires_at = now() - interval '1 second'")
    await app.housekeeping.run()
    t.strictSame(await allRows(app.database, 'select from one_time_marks'), [])
  })
})

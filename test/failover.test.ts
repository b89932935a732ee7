import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { staleAfterMs } from '../plugins/auth/revocations.ts'
import { type Cluster, requireStandby, startCluster } from './cluster.ts'
import { withClient } from './databases.ts'
import { judgeWriters } from './failover-judge.ts'
import { type SignOut, send, startWriters, type Writer, type Writers } from './failover-writers.ts'
import { startFaultProxy } from './fault-proxy.ts'
import { allRows, eventually, password, type Server, startServer, testEnvironment, waitUntilReady } from './harness.ts'
import { registerAgency } from './oracle.ts'
import { createRandom } from './random.ts'
import { askServers, createHistory, startReaders } from './remembered-history.ts'
import { urlsOf } from './stand.ts'

// rehearsal: a failover to a synchronous standby, under writes

/*
 * A primary with a synchronous standby, two processes that reach the primary by one address, and writers that note what was
 * acknowledged. The standby dies and comes back, and the primary is killed for good. `FAILOVER_WRITES=10000` writes more.
 */

const wanted = Number(process.env.FAILOVER_WRITES ?? 900)
/** Few more than two processes hold: 4 of the pool, and 2 for keyed reads, each. */
const mostConnections = 24

/** Two processes, whose database is reached through a proxy that follows the primary. */
async function startWorld(t: Test) {
  const primary = await startCluster(t, { settings: [`max_connections=${mostConnections}`] })
  const standby = await primary.addStandby()
  await requireStandby(primary)
  const proxy = await startFaultProxy(t, primary.port)
  const app = proxy.through(primary.url('aggios_app'))
  const environment = testEnvironment(
    { ...urlsOf(primary), app, serving: app },
    {
      ...{ SMTP_URL: 'smtp://127.0.0.1:9', LOG_LEVEL: 'warn', DATABASE_POOL: '4' },
      DATABASE_REPLICA_URL: standby.url('aggios_app')
    }
  )
  const servers = await Promise.all([startServer(t, environment), startServer(t, environment)])
  return { primary, standby, proxy, servers, urls: servers.map(({ url }) => url) }
}

/** Somebody whose name is changed by one process and read by both, until the returned function is called. */
async function startHistory(servers: Server[], url: string) {
  await registerAgency(url, 'reader')
  const body = { email: 'owner@reader.example', password }
  const token = String((await send(url, { method: 'POST', path: '/auth/login', body })).body.access_token)
  const me = (await send(url, { method: 'GET', path: '/users/me', token })).body
  const actor = { token, person: String(me.id), agency: String(me.tenant_id) }
  const history = createHistory(askServers(servers), { [actor.person]: String(me.name) })
  return { history, stop: startReaders(history, actor) }
}

/**
 * Presents tokens of sessions that were ended, the newest first, to every process. When it is stopped, it resolves to the answers that
 * were neither 401 nor 503, with the time since the sign-out was acknowledged.
 */
function startIntruder(urls: string[], { all }: Writers) {
  const ended = all
    .flatMap(({ signOuts }) => signOuts.filter(({ outcome }) => outcome === 'acknowledged'))
    .sort((one, other) => other.endedAt - one.endedAt)
  const admitted: { status: number; afterMs: number }[] = []
  let running = true
  const loop = (async () => {
    for (let turn = 0; running; turn++) {
      const { access, endedAt } = ended[turn % Math.min(ended.length, 12)] as SignOut
      for (const url of urls) {
        const afterMs = Math.round(performance.now() - endedAt)
        const { status } = await send(url, { method: 'GET', path: '/users/me', token: access })
        if (status !== 401 && status !== 503) admitted.push({ status, afterMs })
      }
      await sleep(5)
    }
  })()
  return async () => {
    running = false
    await loop
    return { sessions: ended.length, admitted }
  }
}

/** Whether every process refuses every session that was ended. */
async function refusesAll(urls: string[], { all }: Writers): Promise<boolean> {
  const tokens = all.flatMap(({ signOuts }) => signOuts.map(({ access }) => access))
  for (const token of tokens) {
    for (const url of urls) {
      if ((await send(url, { method: 'GET', path: '/users/me', token })).status !== 401) return false
    }
  }
  return true
}

/** Whether the role of the product gets a connection. */
const canConnect = ({ url }: Cluster) =>
  withClient(url('aggios_app'), async () => true).catch((err: { code?: string }) => {
    if (err.code === '53300') return false
    throw err
  })

const oneOf = (table: string) => `select tenant_id, id from ${table} where tenant_id = $1 limit 1`

const timelineOf = async (cluster: Cluster) => {
  const [row] = await allRows(
    { postgres: cluster.url('postgres') },
    'select pg_walfile_name(pg_current_wal_lsn()) as name'
  )
  return Number.parseInt(String(row?.name).slice(0, 8), 16)
}

t.test('a failover under writes', async (t) => {
  const { primary, standby, proxy, servers, urls } = await startWorld(t)
  const [url] = urls as [string]
  const { history, stop } = await startHistory(servers, url)
  const writers = await startWriters({ urls, count: 8, random: createRandom(1) })
  const [writer] = writers.all
  if (!writer) throw new Error('there is no writer')
  const exportAgency = () =>
    fetch(`${url}/api/v1/tenant/export`, { headers: { authorization: `Bearer ${writer.access}` } })
  await writers.reach(Math.floor(wanted / 3))

  await t.test(
    'while the standby is away no write is acknowledged, and each is answered in bounded time',
    async (t) => {
      await standby.kill('SIGQUIT')
      // each writer is refused after the 4 s for which a silent database is waited for
      const before = writers.refused()
      await eventually(() => writers.refused() >= before + 8, 60_000)
      const acknowledged = writers.acknowledged()
      // commits that are given up keep their connections, until the primary has none left
      await eventually(() => canConnect(primary).then((can) => !can), 60_000)
      const refused = writers.refused()
      await eventually(() => writers.refused() >= refused + 8, 60_000)
      t.equal(writers.acknowledged(), acknowledged, 'nothing is acknowledged that only one server has')
      t.comment(`the slowest answer took ${writers.slowestAnswerMs()} ms`)
      const me = { method: 'GET', path: '/users/me', token: writer.access, headers: { 'cache-control': 'no-cache' } }
      t.equal((await send(url, me)).status, 200, 'reads by key go on')
      await standby.start()
      await eventually(() => writers.acknowledged() > acknowledged, 60_000)
      await eventually(() => canConnect(primary), 60_000)
    }
  )

  await writers.reach(Math.floor((2 * wanted) / 3))

  await t.test('the primary is killed, and the standby takes over', async (t) => {
    t.equal(await timelineOf(primary), 1)
    const stopIntruder = startIntruder(urls, writers)
    const refused = writers.refused()
    const killedAt = performance.now()
    await primary.kill('SIGKILL')
    await eventually(() => writers.refused() > refused, 60_000)
    // as long as somebody needs to notice
    await sleep(2000)
    await standby.promote()
    proxy.lead(standby.port)
    const acknowledged = writers.acknowledged()
    await eventually(() => writers.acknowledged() > acknowledged, 60_000)
    t.comment(`${Math.round(performance.now() - killedAt)} ms from the kill to the first acknowledged write`)
    t.equal(await timelineOf(standby), 2, 'another timeline')
    for (const server of servers) await waitUntilReady(server)
    await writers.reach(acknowledged + 20)
    const { sessions, admitted } = await stopIntruder()
    t.ok(sessions > 0, `${sessions} sessions that were ended before`)
    const oldest = Math.max(0, ...admitted.map(({ afterMs }) => afterMs))
    t.comment(`${admitted.length} of their requests were let in, the last one ${oldest} ms after the sign-out`)
    t.strictSame(
      admitted.filter(({ status, afterMs }) => status !== 200 || afterMs >= staleAfterMs),
      [],
      'no process lets one in that ended longer ago than it may be without news'
    )
  })

  await t.test('the old primary is started again, and nothing is written to it', async (t) => {
    await primary.start()
    const position = async () => {
      const [row] = await allRows(
        urlsOf(primary),
        `select (select count(*)::int from audit_events) as events,
           (select count(*)::int from pg_stat_activity where usename = 'aggios_app') as connections`
      )
      return row
    }
    const before = await position()
    t.equal(before?.connections, 0, 'no process connects to it')
    await writers.reach(wanted)
    t.strictSame(await position(), before)
    t.equal(await timelineOf(primary), 1)
  })

  await t.test('every acknowledged write is there once, and nothing is half done', async (t) => {
    await writers.settle()
    await stop()
    await eventually(() => refusesAll(urls, writers))
    t.strictSame(writers.faults, [], 'every failure was 503 with Retry-After')
    t.equal(writers.broken(), 0, 'no connection broke, and no answer took a minute')
    t.strictSame(await judgeWriters(urlsOf(standby), urls, writers.all), [])
    t.ok(
      writers.acknowledged() >= wanted,
      `${writers.acknowledged()} acknowledged writes, ${writers.refused()} refused`
    )
    t.ok(history.counts.reads > 0, `${history.counts.reads} reads, none older than a second`)
    for (const { child } of servers) t.equal(child.exitCode, null, 'no process has ended')
    const whole = await exportAgency()
    t.equal(whole.status, 200)
    t.ok((await whole.text()).includes(String(writer.names.at(-1))), 'an export has the newest')
  })

  await t.test('the judge finds what is taken away or added', async (t) => {
    const database = urlsOf(standby)
    const signedOut = writers.all.find(({ signOuts }) => signOuts.length > 0)
    const [, renamed, added, uninvited, unmailed, emptied, unheard, rotated] = writers.all
    const damages: Record<string, [damaged: Writer | undefined, text: string]> = {
      'a name': [
        renamed,
        "update users set name = 'Somebody' where id in (select user_id from sessions where tenant_id = $1)"
      ],
      'a change of a name': [
        added,
        `insert into audit_events (tenant_id, action, actor_id, detail)
         select $1, action, actor_id, detail from audit_events where tenant_id = $1 and action = 'user.updated' limit 1`
      ],
      'an invitation': [uninvited, `delete from invitations where (tenant_id, id) in (${oneOf('invitations')})`],
      'a mail': [unmailed, `delete from outbox where (tenant_id, id) in (${oneOf('outbox')})`],
      'a file': [
        emptied,
        `update files set status = 'removing', expires_at = now() where (tenant_id, id) in (${oneOf('files').replace('limit', "and status = 'ready' limit")})`
      ],
      'a row of the audit log': [unheard, "delete from audit_events where tenant_id = $1 and action = 'file.created'"],
      'a rotation': [rotated, 'update sessions set counter = counter - 1 where tenant_id = $1 and counter > 0'],
      'a sign-out': [signedOut, 'update sessions set revoked_at = null where tenant_id = $1']
    }
    const known = new Map<Writer, number>()
    for (const [what, [damaged, text]] of Object.entries(damages)) {
      if (!damaged) throw new Error(`no writer for ${what}`)
      await allRows(database, text, [damaged.tenant])
      const verdicts = await judgeWriters(database, urls, [damaged])
      t.ok(verdicts.length > (known.get(damaged) ?? 0), `${what}: ${verdicts.at(-1)}`)
      known.set(damaged, verdicts.length)
    }
  })
})

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { requireStandby, startCluster } from './cluster.ts'
import { startFaultProxy } from './fault-proxy.ts'
import {
  eventually,
  password,
  type Server,
  startServer,
  temporaryFolder,
  testEnvironment,
  waitUntilReady
} from './harness.ts'
import { ask, registerAgency } from './oracle.ts'
import { findFakeClock } from './parts.ts'
import { freePort } from './ports.ts'
import { needsRedis, startRedis } from './redis.ts'
import { askServers, createHistory, startReaders } from './remembered-history.ts'
import { urlsOf } from './stand.ts'

// bounded in time: how old an answer may be
// rehearsal: processes and databases die under reads from memory

/*
 * Remembered reads while something happens to processes, Redis, clocks or the database. An answer is never older than a second:
 * else the database is asked, or there is no answer.
 */

const fakeClock = findFakeClock()

async function startWorld(t: Test) {
  const redis = await startRedis(t)
  const cluster = await startCluster(t)
  const proxy = await startFaultProxy(t, cluster.port)
  const app = proxy.through(cluster.url('aggios_app'))
  const clockFile = join(temporaryFolder(t), 'clock')
  writeFileSync(clockFile, '+0')
  const environment = testEnvironment(
    { ...urlsOf(cluster), app, serving: app },
    {
      REDIS_URL: redis.url,
      DATABASE_POOL: '3',
      ...(!fakeClock.skip && {
        LD_PRELOAD: fakeClock.path,
        FAKETIME_TIMESTAMP_FILE: clockFile,
        FAKETIME_NO_CACHE: '1',
        FAKETIME_DONT_FAKE_MONOTONIC: '1'
      })
    }
  )
  const metrics = [await freePort(), await freePort()]
  const start = async (index: number, port: number) =>
    startServer(t, { ...environment, PORT: String(port), METRICS_PORT: String(metrics[index]) })
  const servers = await Promise.all([0, 1].map(async (index) => start(index, await freePort())))
  const [{ url }] = servers as [Server]
  await registerAgency(url, 'acme')
  const { body } = await ask(url, 'POST', '/auth/login', { body: { email: 'owner@acme.example', password } })
  const token = String(body.access_token)
  const me = await ask(url, 'GET', '/users/me', { token })
  const actor = { token, person: String(me.body.id), agency: String(me.body.tenant_id) }
  return {
    redis,
    cluster,
    proxy,
    servers,
    actor,
    history: createHistory(askServers(servers), { [actor.person]: String(me.body.name) }),
    setClock: (offset: string) => writeFileSync(clockFile, offset),
    async restart(index: number) {
      const server = servers[index] as Server
      server.child.kill('SIGKILL')
      await server.exited
      servers[index] = await start(index, server.port)
    },
    /** How many reads memory has answered. */
    async hits() {
      const counts = metrics.map(async (port) => {
        const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
        return Number(/^aggios_remembered_reads_total\{by="memory".*\} (\d+)$/m.exec(text)?.[1])
      })
      return (await Promise.all(counts)).reduce((sum, each) => sum + each, 0)
    }
  }
}

t.test('remembered reads', needsRedis, async (t) => {
  const world = await startWorld(t)
  const { redis, cluster, proxy, servers, actor, history } = world

  /** Reads and writes go on while `fault` happens, and for a while after it. Then memory answers again. */
  async function during(t: Test, fault: () => Promise<unknown>): Promise<void> {
    const stop = startReaders(history, actor)
    try {
      await sleep(600)
      await fault()
      for (const server of servers) await waitUntilReady(server)
      const { reads, writes, unanswered } = history.counts
      const hits = await world.hits()
      await eventually(async () => (await world.hits()) > hits + 10)
      await eventually(() => history.counts.writes > writes + 3)
      t.ok(reads > 10, `${reads} reads and ${writes} changes, of which ${unanswered} were not answered`)
    } finally {
      await stop()
    }
  }

  await t.test('a process is killed', (t) => during(t, () => world.restart(1)))

  await t.test('a process is halted for ten seconds, and goes on', (t) =>
    during(t, async () => {
      servers[1]?.child.kill('SIGSTOP')
      await sleep(10_000)
      servers[1]?.child.kill('SIGCONT')
    })
  )

  await t.test('Redis is killed, and frozen', (t) =>
    during(t, async () => {
      await redis.restart()
      redis.signal('SIGSTOP')
      await sleep(1500)
      redis.signal('SIGCONT')
    })
  )

  await t.test('clocks jump, forth and back', { skip: fakeClock.skip }, (t) =>
    during(t, async () => {
      for (const offset of ['+40', '+0', '-40', '+0']) {
        world.setClock(offset)
        await sleep(700)
      }
    })
  )

  await t.test('the database is killed, and another one takes over', async (t) => {
    const standby = await cluster.addStandby()
    await requireStandby(cluster)
    await during(t, async () => {
      await cluster.kill('SIGKILL')
      await standby.promote()
      proxy.lead(standby.port)
    })
  })
})

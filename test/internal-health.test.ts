import t from 'tap'
import { readConfig } from '../src/config/config.ts'
import { buildInternal } from '../src/processes/internal-listener.ts'
import { serve, serveInProcess } from '../src/processes/serving.ts'
import { startCluster } from './cluster.ts'
import { withClient } from './databases.ts'
import { createTestDatabase, eventually, testEnvironment } from './harness.ts'

/*
 * What operators see at /health of the internal listener beyond what everybody sees: latencies, disk, replica, backups.
 */

t.test('a process tells operators how its disk, its replica and its backups are', async (t) => {
  const cluster = await startCluster(t, { settings: ['archive_mode=on', 'archive_timeout=60'] })
  const admin = (text: string) => withClient(cluster.url('postgres'), async (client) => (await client.query(text)).rows)
  await admin("alter system set archive_command = 'true'")
  await admin('select pg_reload_conf()')
  const standby = await cluster.addStandby()
  const [postgres, owner, app] = (['postgres', 'aggios_owner', 'aggios_app'] as const).map(cluster.url) as [
    string,
    string,
    string
  ]
  const urls = { postgres, owner, app, backup: postgres, serving: app }
  const env = testEnvironment(
    { ...urls, serving: urls.app },
    { DATABASE_REPLICA_URL: standby.url('aggios_app'), PORT: '0' }
  )
  const config = readConfig(env)

  const processes = serveInProcess(config, () => {})
  await processes.ready
  const internal = buildInternal(config, () => processes)
  t.teardown(async () => {
    await internal.close()
    await processes.drain({ reason: 'the test is over' })
  })
  const health = async () => (await internal.inject({ url: '/health', headers: { host: '127.0.0.1' } })).json()

  // the replica is asked for its age a moment after the start
  await eventually(async () => (await health()).status === 'ok', 30_000)
  const { workers } = await health()
  t.match(workers[0].checks, {
    database: { status: 'ok', latency_ms: Number, slow_over_ms: 100, slow: Boolean },
    storage: { status: 'ok', slow_over_ms: 1000 }
  })
  t.match(workers[0].conditions, {
    disk: { status: 'ok', free_bytes: Number, free_share: Number },
    replica: { status: 'ok', behind_seconds: Number },
    backup: { status: 'ok', archived_seconds: Number }
  })
  t.ok(workers[0].conditions.replica.behind_seconds < 10)

  standby.freeze()
  t.teardown(() => standby.thaw())
  await admin("alter system set archive_command = 'false'")
  await admin('select pg_reload_conf()')
  await eventually(async () => {
    // a log to which nothing was written is not switched, and the archiver reads its settings a moment later
    await admin("select pg_create_restore_point('health'), pg_switch_wal()")
    const { replica, backup } = (await health()).workers[0].conditions
    return replica.status === 'degraded' && backup.status === 'degraded'
  }, 60_000)
  const worse = await health()
  t.equal(worse.status, 'degraded', 'and the process goes on serving')
  t.match(worse.workers[0], {
    status: 'ok',
    conditions: {
      replica: { reason: /away or behind/ },
      backup: { reason: 'PostgreSQL cannot archive its log' }
    }
  })
})

t.test('without a replica and an archive there is nothing to say of them', async (t) => {
  const serving = await serve(readConfig(testEnvironment(await createTestDatabase(t), { PORT: '0' })), () => {})
  t.teardown(() => serving.drain({ reason: 'the test is over' }))
  const report = await serving.report('health')
  t.strictSame(Object.keys(report?.conditions ?? {}), ['disk'])
})

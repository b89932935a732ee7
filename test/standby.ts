import { type ChildProcess, spawn } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import pg from 'pg'
import { type EmbeddedServer, findBinaries, wrap } from '../db/embedded.ts'
import { freePort } from './ports.ts'

export type Standby = {
  url(role: Parameters<EmbeddedServer['url']>[0], database?: string): string
  start(): Promise<void>
  /** Stops it without a clean shutdown. */
  kill(): Promise<void>
}

/**
 * Makes a streaming replica of a running server in `folder`, from a copy of its files (`pg_backup_start`). The replica
 * follows the write-ahead log from there.
 */
export async function makeStandby(primary: EmbeddedServer, primaryFolder: string, folder: string): Promise<Standby> {
  const { postgres } = await findBinaries()
  const data = join(folder, 'postgres')
  const { hostname, port: primaryPort, password } = new URL(primary.url('postgres'))
  const port = await freePort()

  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const admin = new pg.Client({ connectionString: primary.url('postgres') })
  await admin.connect()
  try {
    await admin.query("select pg_create_physical_replication_slot('standby', true)")
    await admin.query("select pg_backup_start('standby', true)")
    const left = new Set(['postmaster.pid', 'postmaster.opts', 'pg_replslot'])
    cpSync(join(primaryFolder, 'postgres'), data, { recursive: true, filter: (source) => !left.has(basename(source)) })
    const { rows } = await admin.query('select labelfile from pg_backup_stop(false)')
    writeFileSync(join(data, 'backup_label'), rows[0].labelfile)
  } finally {
    await admin.end()
  }
  mkdirSync(join(data, 'pg_replslot'), { recursive: true })
  writeFileSync(join(data, 'standby.signal'), '')
  const conninfo = `host=${hostname} port=${primaryPort} user=postgres password=${password}`

  let child: ChildProcess | undefined
  return {
    url(role, database) {
      const there = new URL(primary.url(role, database))
      there.port = String(port)
      return there.href
    },
    async start() {
      rmSync(join(data, 'postmaster.pid'), { force: true })
      const settings = [
        ...['max_connections=200', 'fsync=off', 'wal_receiver_timeout=5s', 'wal_retrieve_retry_interval=200ms'],
        ...[`primary_conninfo=${conninfo}`, 'primary_slot_name=standby', 'hot_standby=on', 'timezone=UTC']
      ]
      const flags = ['-D', data, '-k', '', '-h', '127.0.0.1', '-p', String(port), ...settings.flatMap((s) => ['-c', s])]
      const [command, args] = wrap(postgres, flags)
      child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], cwd: '/' })
      await accepting(child)
    },
    async kill() {
      if (!child || child.exitCode !== null || child.signalCode !== null) return
      const exited = new Promise((done) => child?.once('exit', done))
      // PostgreSQL's immediate shutdown
      child.kill('SIGQUIT')
      await exited
      if (existsSync(join(data, 'postmaster.pid'))) rmSync(join(data, 'postmaster.pid'))
    }
  }
}

function accepting(child: ChildProcess): Promise<void> {
  return new Promise((ready, fail) => {
    let log = ''
    child.once('error', fail)
    child.once('exit', () => fail(new Error(`the standby ended: ${log}`)))
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      log = (log + text).slice(-8192)
      if (log.includes('ready to accept read-only connections')) ready()
    })
  })
}

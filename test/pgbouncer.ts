import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'

export const pgbouncer = findProgram('pgbouncer')

export type PgBouncer = {
  /** The same URL, through the pooler. */
  through(url: string): string
  stop(): Promise<void>
}

/** Starts PgBouncer in transaction mode in front of the server of `url`, for the role of `url` and all databases. */
export async function startPgBouncer(url: string, { poolSize = 20, port = 0 } = {}): Promise<PgBouncer> {
  const { hostname, port: target, username, password } = new URL(url)
  const folder = mkdtempSync(join(tmpdir(), 'aggios-pgbouncer-'))
  // run by root, it changes to the user nobody
  chmodSync(folder, 0o755)
  writeFileSync(join(folder, 'users.txt'), `"${username}" "${password}"\n`)
  const own = port || (await freePort())
  const file = join(folder, 'pgbouncer.ini')
  const lines = [
    '[databases]',
    `* = host=${hostname} port=${target}`,
    '[pgbouncer]',
    'listen_addr = 127.0.0.1',
    `listen_port = ${own}`,
    'unix_socket_dir =',
    'auth_type = scram-sha-256',
    `auth_file = ${join(folder, 'users.txt')}`,
    'pool_mode = transaction',
    `default_pool_size = ${poolSize}`,
    'max_client_conn = 2000',
    'server_idle_timeout = 5',
    // connections to a database that was dropped fail, and the next ones wait for this long
    'server_login_retry = 1'
  ]
  writeFileSync(file, `${lines.join('\n')}\n`)
  const child = start(file)
  await listening(child)
  return {
    through(other) {
      const there = new URL(other)
      there.port = String(own)
      return there.href
    },
    async stop() {
      const exited = new Promise((done) => child.once('exit', done))
      if (child.exitCode === null && child.signalCode === null) {
        child.kill('SIGKILL')
        await exited
      }
      rmSync(folder, { recursive: true, force: true })
    }
  }
}

function start(file: string): ChildProcess {
  const asNobody = process.getuid?.() === 0 ? ['--reuid=65534', '--regid=65534', '--clear-groups'] : []
  const words =
    process.platform === 'linux' ? ['setpriv', ...asNobody, '--pdeathsig=SIGKILL', pgbouncer.path] : [pgbouncer.path]
  return spawn(words[0] as string, [...words.slice(1), file], { stdio: ['ignore', 'ignore', 'pipe'] })
}

function listening(child: ChildProcess): Promise<void> {
  return new Promise((ready, fail) => {
    let log = ''
    child.once('exit', () => fail(new Error(`PgBouncer ended: ${log}`)))
    child.once('error', fail)
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      log = (log + text).slice(-4096)
      if (log.includes('process up')) ready()
    })
  })
}

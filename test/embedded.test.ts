import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { findBinaries, wrap } from '../db/embedded.ts'
import { eventually, isReady, type Server, startServer, temporaryFolder } from './harness.ts'
import { freePort } from './ports.ts'

// rehearsal: the embedded database after a kill

/*
 * The embedded database starts again on a folder that a killed process has left.
 */

const dir = temporaryFolder(t)
const dataDir = join(dir, 'data')
const data = join(dataDir, 'postgres')
const lock = join(dataDir, 'server.lock')
const pidFile = join(data, 'postmaster.pid')
const env = { DATA_DIR: dataDir, LOG_LEVEL: 'warn' }

/** Starts a server in a process group of its own. Rejects with its output if it ends. */
async function start(t: Test): Promise<Server> {
  const server = await startServer(t, env, { ready: false, prefix: ['setsid'] })
  await eventually(async () => server.child.exitCode !== null || (await isReady(server)), 60_000)
  t.equal(server.child.exitCode, null, `it serves: ${server.output()}`)
  return server
}

async function stop(server: Server): Promise<void> {
  server.child.kill('SIGTERM')
  await server.exited
}

function adopt(t: Test, child: ChildProcess): ChildProcess {
  t.teardown(() => child.kill('SIGKILL'))
  return child
}

const startTimeOf = (pid: number) => {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19]
}

t.test('killed with its whole group it starts again at once', async (t) => {
  let server = await start(t)
  for (let round = 0; round < 2; round++) {
    process.kill(-(server.child.pid as number), 'SIGKILL')
    // nothing is waited for
    server = await start(t)
  }
  await stop(server)
  t.notOk(existsSync(lock))
})

const linuxOnly = { skip: process.platform === 'linux' ? false : 'there is no /proc' } as const

t.test('the claim of a process that has ended, and that nobody asked, is no claim', linuxOnly, async (t) => {
  // the shell is replaced by a program that never waits for its children
  const shell = adopt(
    t,
    spawn('sh', ['-c', 'sleep 0.1 & echo $!; exec sleep 300'], { stdio: ['ignore', 'pipe', 'ignore'] })
  )
  const [text] = (await once(shell.stdout as NodeJS.ReadableStream, 'data')) as [Buffer]
  const pid = Number(text)
  writeFileSync(lock, `${pid} ${startTimeOf(pid)}`)
  await eventually(() => /\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8')))
  await stop(await start(t))
})

t.test('a process that got the pid of the database is left alone, and does not keep it from starting', async (t) => {
  const server = await start(t)
  const left = readFileSync(pidFile, 'utf8')
  await stop(server)
  const other = adopt(t, spawn('sleep', ['300'], { stdio: 'ignore' }))
  writeFileSync(pidFile, left.replace(/^\d+/, String(other.pid)), { mode: 0o600 })
  const again = await start(t)
  t.match(again.output(), `process ${other.pid} is no PostgreSQL`)
  await stop(again)
  t.equal(other.exitCode, null)
  t.equal(other.signalCode, null)
})

t.test('a database that has lost its process is ended, and the next one has what it wrote', async (t) => {
  const { postgres } = await findBinaries()
  const args = ['-D', data, '-k', '', '-h', '127.0.0.1', '-p', String(await freePort())]
  const orphan = adopt(t, spawn(...wrap(postgres, args), { stdio: ['ignore', 'ignore', 'pipe'], cwd: '/' }))
  const ended = once(orphan, 'exit')
  let log = ''
  orphan.stderr?.setEncoding('utf8').on('data', (line: string) => {
    log += line
  })
  await eventually(() => log.includes('ready to accept connections'))
  const server = await start(t)
  t.match(server.output(), 'left behind')
  t.strictSame(await ended, [0, null], 'in good order')
  await stop(server)
})

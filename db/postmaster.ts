import { spawnSync } from 'node:child_process'
import { readFileSync, readlinkSync, realpathSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** A fast shutdown writes a checkpoint, which takes long after many writes. */
const fastShutdownMs = 15_000
const immediateShutdownMs = 5000
const pollMs = 50

/**
 * Clears a stale postmaster.pid, so that a server can start on `data`. The caller holds the folder's lock, so no living
 * process serves from it.
 *
 * A PostgreSQL that still runs on this data has lost its parent process, and is stopped. Any other process with the recorded
 * pid got the pid by chance; PostgreSQL would take it for a running server and never start. Throws when the left-over server
 * can't be stopped.
 */
export async function clearStalePostmaster(data: string, progress: (line: string) => void): Promise<void> {
  const file = join(data, 'postmaster.pid')
  const [first, ...rest] = read(file).split('\n')
  const pid = Number(first)
  if (!(pid > 0)) return
  if (servesFrom(pid, data)) {
    progress(`ending the PostgreSQL that was left behind as process ${pid} …`)
    if (await end(pid, data)) return
    throw new Error(`process ${pid} is a PostgreSQL on ${data} that does not end; stop it`)
  }
  if (!exists(pid) || read(file).split('\n')[0] !== first) return
  progress(`process ${pid} is no PostgreSQL on ${data}, so its postmaster.pid is a leftover`)
  // PostgreSQL treats a pid file with its parent's pid as stale. The other lines stay: PostgreSQL uses them to check that
  // no process still uses the shared memory, and a deleted file would skip this check
  writeFileSync(file, [process.pid, ...rest].join('\n'))
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return ''
  }
}

async function end(pid: number, data: string): Promise<boolean> {
  for (const [signal, timeoutMs] of [['SIGINT', fastShutdownMs] as const, ['SIGQUIT', immediateShutdownMs] as const]) {
    send(pid, signal)
    for (let waited = 0; waited < timeoutMs; waited += pollMs) {
      if (!servesFrom(pid, data)) return true
      await sleep(pollMs)
    }
  }
  return false
}

function send(pid: number, signal: NodeJS.Signals | 0): string | undefined {
  try {
    process.kill(pid, signal)
    return undefined
  } catch (err) {
    return (err as NodeJS.ErrnoException).code
  }
}

/** True also for a zombie, because PostgreSQL counts a zombie as running. */
const exists = (pid: number) => send(pid, 0) !== 'ESRCH'

/** Whether the process is a PostgreSQL on this data: the folder is its working directory and one of its arguments. */
function servesFrom(pid: number, data: string): boolean {
  if (process.platform === 'linux') {
    try {
      const isPostgres = /(^|\/)postgres\0/.test(readFileSync(`/proc/${pid}/cmdline`, 'utf8'))
      return isPostgres && readlinkSync(`/proc/${pid}/cwd`) === realpathSync(data)
    } catch {
      return false
    }
  }
  const { stdout } = spawnSync('ps', ['-ww', '-o', 'stat=,command=', '-p', String(pid)], { encoding: 'utf8' })
  return !stdout.trim().startsWith('Z') && stdout.includes('postgres') && stdout.includes(`-D ${data}`)
}

import { spawnSync } from 'node:child_process'
import { readFileSync, readlinkSync, realpathSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** A checkpoint of much that was written takes its time. */
const fastShutdownMs = 15_000
const immediateShutdownMs = 5000
const pollMs = 50

/**
 * Makes way for a server on a folder that nobody serves from, as our claim of it has shown: what postmaster.pid says is then a
 * leftover. A server that still runs on these data has lost its parent, and is ended. Any other process has merely got the same
 * pid, and PostgreSQL would take it for a server for ever.
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
  // PostgreSQL takes the pid of its parent for a leftover. The rest stays: by it PostgreSQL finds out whether anybody still
  // uses its shared memory, which a file that is gone would hide
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

/** Also one that has ended and whose parent does not ask; PostgreSQL counts it. */
const exists = (pid: number) => send(pid, 0) !== 'ESRCH'

/** Whether this is a PostgreSQL on these data. It works in their folder, and has named it when it was started. */
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

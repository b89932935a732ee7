import { spawnSync } from 'node:child_process'
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** Another process serves from this folder. Two servers must not run on the same data. */
export class FolderInUse extends Error {}

/** How long a killed process may take to end. */
const exitTimeoutMs = 10_000

/**
 * Locks a folder for this process with the file `server.lock`. Resolves to the function that unlocks it. Throws FolderInUse
 * when a living process holds the lock; waits while the holder is exiting.
 *
 * A lock is stale when its process has ended or its pid now belongs to another process. Of all processes that find a stale
 * lock, exactly one removes it. A lock file is written first and then linked into place, so it is never read half written.
 */
export async function lockFolder(dir: string): Promise<() => void> {
  const file = join(dir, 'server.lock')
  const ownLock = `${process.pid} ${readProcess(process.pid).started}`
  const temporaryFile = `${file}.${process.pid}`
  const deadline = Date.now() + exitTimeoutMs
  for (;;) {
    writeFileSync(temporaryFile, ownLock)
    try {
      linkSync(temporaryFile, file)
      return () => {
        if (readLock(file) === ownLock) rmSync(file, { force: true })
      }
    } catch (err) {
      if ((err as NodeJS.ErrnoException).code !== 'EEXIST') throw err
    } finally {
      rmSync(temporaryFile, { force: true })
    }
    const lock = readLock(file)
    if (lock === undefined) continue
    const [pid = '', started = ''] = lock.split(' ')
    const { state, ...holder } = readProcess(Number(pid))
    if (started === '' || holder.started !== started || state === 'gone') {
      moveStaleLock(file, temporaryFile, lock)
      continue
    }
    if (state === 'alive' || Date.now() > deadline) {
      throw new FolderInUse(`process ${pid} serves from ${dir} already; stop it, or set another DATA_DIR`)
    }
    await sleep(20)
  }
}

/**
 * Removes a stale lock by renaming it. If another process was faster and the renamed lock is its new one, puts it back.
 */
function moveStaleLock(file: string, temporaryFile: string, lock: string): void {
  try {
    renameSync(file, temporaryFile)
    if (readLock(temporaryFile) !== lock) linkSync(temporaryFile, file)
  } catch (err) {
    const { code } = err as NodeJS.ErrnoException
    if (code !== 'ENOENT' && code !== 'EEXIST') throw err
  } finally {
    rmSync(temporaryFile, { force: true })
  }
}

function readLock(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
}

type Process = {
  /** A zombie counts as `gone`: it holds no resources any more. */
  state: 'alive' | 'exiting' | 'gone'
  /** The start time, which distinguishes it from a later process with the same pid. Empty when there is no process. */
  started: string
}

const none: Process = { state: 'gone', started: '' }

/** PF_EXITING, in the flags of /proc/<pid>/stat: the process is exiting. */
const exitingFlag = 0x4
/** SIGKILL in the masks of pending signals of /proc/<pid>/status. The process can't ignore it and will end. */
const sigkillMask = 1n << 8n

function readProcess(pid: number): Process {
  if (!(pid > 0)) return none
  return process.platform === 'linux' ? readLinuxProcess(pid) : readProcessWithPs(pid)
}

function readLinuxProcess(pid: number): Process {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // the process name before the last bracket may contain spaces and brackets
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    const started = fields[19] ?? ''
    if (/^[ZXx]/.test(fields[0] ?? '')) return { state: 'gone', started }
    const pending = [...readFileSync(`/proc/${pid}/status`, 'utf8').matchAll(/^(?:SigPnd|ShdPnd):\s*(\w+)$/gm)]
    const isKilled = pending.some(([, mask]) => BigInt(`0x${mask}`) & sigkillMask)
    return { state: isKilled || Number(fields[6]) & exitingFlag ? 'exiting' : 'alive', started }
  } catch {
    return none
  }
}

function readProcessWithPs(pid: number): Process {
  const { stdout } = spawnSync('ps', ['-o', 'stat=,lstart=', '-p', String(pid)], { encoding: 'utf8' })
  const [, flags, started] = /^(\S+)\s+(.+)$/.exec(stdout.trim()) ?? []
  if (flags === undefined || started === undefined) return none
  const state = flags.startsWith('Z') ? 'gone' : flags.includes('E') ? 'exiting' : 'alive'
  return { state, started: started.replaceAll(' ', '_') }
}

import { spawnSync } from 'node:child_process'
import { linkSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** A second server in one folder would be two servers in one database. */
export class FolderInUse extends Error {}

/** How long a process that was killed may take to be gone. */
const exitTimeoutMs = 10_000

/**
 * One server process a folder. A claim whose process is gone, or is another one by now, is stale and moved away by exactly one
 * of those who find it; one whose process is just dying is waited for. A claim is linked into place whole, so nobody ever reads
 * half of one.
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

/** Put back when another process was faster and what was moved is its own claim. */
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
  /** One that has ended, and waits only for its parent to ask, is gone: it holds nothing any more. */
  state: 'alive' | 'exiting' | 'gone'
  /** Tells it from a later one with the same pid. Empty when there is none. */
  started: string
}

const none: Process = { state: 'gone', started: '' }

/** In the flags of /proc/<pid>/stat: it is on its way out. */
const exitingFlag = 0x4
/** In the masks of /proc/<pid>/status: SIGKILL, which nobody can refuse, waits to be taken. */
const sigkillMask = 1n << 8n

function readProcess(pid: number): Process {
  if (!(pid > 0)) return none
  return process.platform === 'linux' ? readLinuxProcess(pid) : readProcessWithPs(pid)
}

function readLinuxProcess(pid: number): Process {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // the name before it may have spaces and brackets in it
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

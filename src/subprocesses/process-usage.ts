import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'

/** The resources a process uses: bytes of resident memory, and milliseconds of CPU since its start. */
export type Usage = { memory: number; cpuMs: number }

/** The clock tick of /proc/<pid>/stat: a hundredth of a second on every platform that Node runs on. */
const tickMs = 10
const run = promisify(execFile)

/** Reads what a process uses. Resolves to undefined when the process has ended. */
export const readUsage: (pid: number) => Promise<Usage | undefined> =
  process.platform === 'linux' ? readProcUsage : readPsUsage

async function readProcUsage(pid: number): Promise<Usage | undefined> {
  try {
    // the second field is the command in brackets, which may contain anything; the split begins at the third field
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    const resident = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0
    return { memory: Number(resident) * 1024, cpuMs: (Number(fields[11]) + Number(fields[12])) * tickMs }
  } catch {
    return undefined
  }
}

/** Reads the same from `ps`, for systems without /proc. */
export async function readPsUsage(pid: number): Promise<Usage | undefined> {
  try {
    const { stdout } = await run('ps', ['-o', 'rss=,time=', '-p', String(pid)])
    const [resident, time = ''] = stdout.trim().split(/\s+/)
    // the time is [days-]hours:minutes:seconds, or minutes:seconds with hundredths
    const [days, clock = ''] = time.includes('-') ? time.split('-') : ['0', time]
    const seconds = clock.split(':').reduce((sum, part) => sum * 60 + Number(part), 0) + Number(days) * 86_400
    return Number.isNaN(seconds) ? undefined : { memory: Number(resident) * 1024, cpuMs: seconds * 1000 }
  } catch {
    return undefined
  }
}

import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'

/** What a process has by now: bytes of memory that are resident, and milliseconds of CPU since its start. */
export type Usage = { memory: number; cpuMs: number }

/** Linux counts CPU in hundredths of a second, on every platform that Node runs on. */
const tickMs = 10
const run = promisify(execFile)

/** Undefined for a process that is gone. */
export const readUsage: (pid: number) => Promise<Usage | undefined> =
  process.platform === 'linux' ? usageOfProc : usageOfPs

async function usageOfProc(pid: number): Promise<Usage | undefined> {
  try {
    // the command stands in brackets and may contain anything; the fields are numbered from the third on
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    const resident = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1] ?? 0
    return { memory: Number(resident) * 1024, cpuMs: (Number(fields[11]) + Number(fields[12])) * tickMs }
  } catch {
    return undefined
  }
}

/** Where there is no /proc. */
export async function usageOfPs(pid: number): Promise<Usage | undefined> {
  try {
    const { stdout } = await run('ps', ['-o', 'rss=,time=', '-p', String(pid)])
    const [resident, time = ''] = stdout.trim().split(/\s+/)
    // [days-]hours:minutes:seconds, or minutes:seconds with hundredths
    const [days, clock = ''] = time.includes('-') ? time.split('-') : ['0', time]
    const seconds = clock.split(':').reduce((sum, part) => sum * 60 + Number(part), 0) + Number(days) * 86_400
    return Number.isNaN(seconds) ? undefined : { memory: Number(resident) * 1024, cpuMs: seconds * 1000 }
  } catch {
    return undefined
  }
}

import { existsSync, readdirSync, readFileSync } from 'node:fs'

/*
 * Reads the CPU time and memory of processes from /proc. Other systems than Linux have none, and figures that need it
 * are skipped.
 */

export type Usage = { cpu_us: number; memory_bytes: number }

/** The unit of CPU time in /proc, which does not depend on the kernel's timer frequency. */
const tickUs = 10_000
const pageBytes = 4096

const hasProc = existsSync('/proc/self/stat')

/** The usage of a process and its descendants, with the CPU time of children that have ended. NaN without /proc. */
export function usageOf(pid: number): Usage {
  if (!hasProc) return { cpu_us: Number.NaN, memory_bytes: Number.NaN }
  return [pid, ...descendants(pid)].map(usageOfOne).reduce(add, { cpu_us: 0, memory_bytes: 0 })
}

const add = (a: Usage, b: Usage): Usage => ({
  cpu_us: a.cpu_us + b.cpu_us,
  memory_bytes: a.memory_bytes + b.memory_bytes
})

function usageOfOne(pid: number): Usage {
  const fields = statOf(pid)
  if (!fields) return { cpu_us: 0, memory_bytes: 0 }
  // utime, stime, cutime and cstime of this process, and its resident pages
  const ticks = fields.slice(11, 15).reduce((sum, each) => sum + Number(each), 0)
  return { cpu_us: ticks * tickUs, memory_bytes: Number(fields[21]) * pageBytes }
}

/** The fields of /proc/<pid>/stat from the third on. The second field is a name and may contain spaces. */
function statOf(pid: number): string[] | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    return text.slice(text.lastIndexOf(')') + 2).split(' ')
  } catch {
    return undefined
  }
}

function descendants(pid: number): number[] {
  const children = new Map<number, number[]>()
  for (const name of readdirSync('/proc')) {
    const fields = /^\d+$/.test(name) ? statOf(Number(name)) : undefined
    if (!fields) continue
    const parent = Number(fields[1])
    children.set(parent, [...(children.get(parent) ?? []), Number(name)])
  }
  const below = (parent: number): number[] => (children.get(parent) ?? []).flatMap((child) => [child, ...below(child)])
  return below(pid)
}

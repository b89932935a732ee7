import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'

/*
 * Runs files of tests, each as a process of its own, and reads the TAP that they print. Node runs them as they are:
 * what tap's own runner puts around a file, and around every server that a file starts, costs as much CPU time as many
 * of the files themselves.
 */

/**
 * The result of one file: its assertions, how long it took, the CPU time of all that it started (0 where the system does
 * not tell), and the lines about what failed and what was skipped.
 */
export type Outcome = {
  passed: number
  failed: number
  skipped: number
  ms: number
  cpuSeconds: number
  failures: string[]
  skips: string[]
}

const root = join(import.meta.dirname, '..')
/** A file ends itself after its time-out. A file that can't is killed so much later. */
const killAfterMs = 60_000

/** How files are run: `preload` is a module that each file loads first, as do the servers and commands that it starts. */
export type RunOptions = { timeoutSeconds: number; preload?: string }

/** Runs one file. With `show`, what it prints is printed as it comes. */
export async function runFile(
  file: string,
  { timeoutSeconds, preload, show }: RunOptions & { show: boolean }
): Promise<Outcome> {
  const startedAt = performance.now()
  const child = spawn(process.execPath, [...(preload === undefined ? [] : ['--import', preload]), file], {
    cwd: root,
    env: { ...process.env, TAP: '1', TAP_TIMEOUT: String(timeoutSeconds) },
    stdio: ['ignore', 'pipe', show ? 'inherit' : 'pipe']
  })
  // of many files at once, only what a failed one said last is of interest
  let said = ''
  child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
    said = (said + chunk).slice(-4000)
  })
  child.once('exit', () => {
    outcome.cpuSeconds = cpuSecondsOfOneMore()
  })
  const ended = once(child, 'close')
  const kill = setTimeout(() => child.kill('SIGKILL'), timeoutSeconds * 1000 + killAfterMs)
  const outcome: Outcome = { passed: 0, failed: 0, skipped: 0, ms: 0, cpuSeconds: 0, failures: [], skips: [] }
  let planned = false
  let failing = false
  for await (const line of createInterface({ input: child.stdout as Readable })) {
    if (show) process.stdout.write(`${line}\n`)
    const [, plan, reason] = line.match(/^1\.\.(\d+)(?: # (.*))?$/) ?? []
    if (plan !== undefined) planned = true
    if (plan === '0') {
      outcome.skipped++
      outcome.skips.push(`the whole file # SKIP ${reason ?? ''}`)
    }
    const [, verdict, rest = ''] = line.match(/^ *(ok|not ok) \d+(.*)$/) ?? []
    if (verdict !== undefined) {
      failing = verdict === 'not ok'
      if (/ # SKIP/i.test(rest)) {
        outcome.skipped++
        outcome.skips.push(line)
      }
      // a line with a time sums up the assertions above it
      else if (!/ # time=|{$/.test(rest)) outcome[failing ? 'failed' : 'passed']++
    }
    if (failing) outcome.failures.push(line)
  }
  const [code, signal] = await ended
  clearTimeout(kill)
  if (code !== 0 || !planned) {
    // a file that crashed has printed no failed assertion
    outcome.failed = Math.max(1, outcome.failed)
    outcome.failures.push(`${file} ended with ${signal ?? code}${planned ? '' : ', and not all of its tests ran'}`)
  }
  if (outcome.failed > 0 && said !== '') outcome.failures.push(...said.trimEnd().split('\n'))
  outcome.ms = performance.now() - startedAt
  return outcome
}

/**
 * What a file rehearses, if it is a rehearsal: a piece of work on whole installations, by the line with which it says so.
 */
export function findRehearsal(source: string): string | undefined {
  return /^\/\/ rehearsal: (\S.*)$/m.exec(source)?.[1]
}

/** The CPU time of all children that have ended so far, in ticks of 10 ms. */
let ticksOfEnded = 0

/** The CPU time of the child that has just ended and of all that it has waited for. */
function cpuSecondsOfOneMore(): number {
  if (!existsSync('/proc/self/stat')) return 0
  const stat = readFileSync('/proc/self/stat', 'utf8')
  // cutime and cstime, the 16th and 17th member; the name in parentheses is the second
  const [user, system] = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .slice(13, 15)
    .map(Number)
  const before = ticksOfEnded
  ticksOfEnded = Number(user) + Number(system)
  return (ticksOfEnded - before) / 100
}

/** Runs files beside each other. `onDone` is called with each result as it comes. */
export async function runFiles(
  files: string[],
  { jobs, onDone, ...options }: RunOptions & { jobs: number; onDone: (file: string, outcome: Outcome) => void }
): Promise<void> {
  const left = longestFirst(files)
  const work = async () => {
    for (let file = left.shift(); file !== undefined; file = left.shift()) {
      onDone(file, await runFile(file, { ...options, show: false }))
    }
  }
  await Promise.all(Array.from({ length: jobs }, work))
}

/** Files that take longest. They come first, so that none of them is left for the end, when nothing runs beside it. */
export const longest = [
  ...['browser', 'drill', 'backups', 'isolation', 'faults', 'rolling', 'mutation', 'start-up', 'replicas'],
  ...['first-start', 'malformed-requests', 'redis-faults', 'doctor', 'older-version', 'rate-limits', 'tenant-restore'],
  ...['passwords', 'sign-in-timing', 'sign-in-limits', 'workers', 'contributing', 'contract', 'processes', 'overload'],
  ...['hasher', 'stack', 'traefik', 'upgrades', 'upgrade-rehearsal', 'revocations', 'pgbouncer', 'email-change'],
  ...['single-use', 'user-command']
]

function longestFirst(files: string[]): string[] {
  const placeOf = (file: string) => {
    const place = longest.indexOf(basename(file, '.test.ts'))
    return place === -1 ? longest.length : place
  }
  return [...files].sort((one, other) => placeOf(one) - placeOf(other))
}

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { startEmbedded } from '../db/embedded.ts'
import { migrate } from '../db/migrate.ts'
import { createDatabase, type DatabaseUrls, templateDatabase } from './databases.ts'
import { untilMachineHasTime, watchMachine } from './machine.ts'
import { startPgBouncer } from './pgbouncer.ts'

/*
 * Starts one PostgreSQL for the whole run, creates the database that every test copies, and runs tap: on the files that
 * are named, on all, or with `--changed` on those that load a file that has changed since they ran. Failures are
 * printed again at the end, and the last line counts them. With TEST_PGBOUNCER=1 the product connects through PgBouncer
 * in transaction mode.
 */

/** The result of one file: its assertions, and how long it took. */
type Outcome = { passed: number; failed: number; skipped: number; ms: number; failures: string[] }

/** The line with which a file says that a busy machine may break its bounds in time, and what it bounds. */
const bounded = /^\/\/ bounded in time: \S/m
/** In CI, more second runs than this count as a failure. */
const mostSecondRuns = 3

const dir = mkdtempSync(join(tmpdir(), 'aggios-test-'))
const server = await startEmbedded(dir, { durable: false })
const app = server.url('aggios_app', 'DATABASE')
const pooler = process.env.TEST_PGBOUNCER === '1' ? await startPgBouncer(app) : undefined
const urls: DatabaseUrls = {
  postgres: server.url('postgres', 'DATABASE'),
  owner: server.url('aggios_owner', 'DATABASE'),
  app,
  serving: pooler?.through(app) ?? app
}
process.env.TEST_DIR = join(dir, 'data')
// each file of tests is a process that loads the same sources; compiled once, they cost half the CPU time
process.env.NODE_COMPILE_CACHE = join(import.meta.dirname, '..', 'node_modules', '.cache', 'compiled')
process.env.TEST_POSTGRES = JSON.stringify(urls)
await createDatabase(templateDatabase, 'template1')
await migrate(urls.owner.replace('DATABASE', templateDatabase))

/** No file runs again after this time. */
const lastRerunMs = 55 * 60_000

const named = process.argv.slice(2)
const files =
  named.length === 0 ? readdirSync(import.meta.dirname).filter((name) => name.endsWith('.test.ts')).length : 0
const wasShortOfTime = watchMachine()
const outcomes = await runTap(named, files)
const broken = () => [...outcomes].filter(([, { failed }]) => failed > 0)
const secondRuns: string[] = []
// a file with bounds in time that failed beside others runs again, alone: the bounds are for a machine that isn't busy.
// If many files failed, they failed for another reason, unless the hypervisor took too much CPU time
if (named.length === 0 && (broken().length <= 6 || wasShortOfTime())) {
  for (const [file, { failures }] of broken()) {
    if (!file.startsWith('test/') || !bounded.test(readFileSync(join(import.meta.dirname, '..', file), 'utf8')))
      continue
    print(`${file} failed beside others and runs once more, alone`, failures)
    secondRuns.push(file)
    await decide(file)
  }
}
await pooler?.stop()
await server.stop()
rmSync(dir, { recursive: true, force: true })

for (const [file, { failures }] of broken()) print(`${file} failed`, failures)
const slowest = [...outcomes].sort(([, one], [, other]) => other.ms - one.ms).slice(0, 10)
if (files > 0)
  print(
    'the slowest',
    slowest.map(([file, { ms }]) => `${(ms / 1000).toFixed(0).padStart(5)} s  ${file}`)
  )
print(`${secondRuns.length} needed a second run`, secondRuns)
const sum = (key: 'passed' | 'failed' | 'skipped') => [...outcomes.values()].reduce((all, each) => all + each[key], 0)
const skipped = sum('skipped')
const excess = process.env.CI && secondRuns.length > mostSecondRuns ? 1 : 0
if (excess) print(`more than ${mostSecondRuns} needed a second run, which counts as a failure`, [])
// with --changed there may be no file to run; otherwise a run without files is a mistake
const failed = outcomes.size === 0 && !named.includes('--changed') ? 1 : sum('failed') + excess
process.stdout.write(`\n${sum('passed')} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`)
process.exitCode = failed > 0 ? 1 : 0

/**
 * Runs a file alone, up to three times. A failure counts at once if the machine was not busy, else after the third run.
 */
async function decide(file: string): Promise<void> {
  for (let runs = 0; runs < 3 && performance.now() < lastRerunMs; runs++) {
    await untilMachineHasTime()
    const wasShortOfTime = watchMachine()
    for (const [again, outcome] of await runTap([file])) outcomes.set(again, outcome)
    if (outcomes.get(file)?.failed === 0 || !wasShortOfTime()) return
  }
}

function print(what: string, failures: string[]): void {
  process.stdout.write(`\n# ${what}\n${failures.slice(0, 150).join('\n')}\n`)
}

/**
 * Runs tap and reads its output. A line without a time is an assertion, and indented lines belong to the file that is
 * named below them. `total` is the number of files; if it is given, the progress is printed.
 */
async function runTap(args: string[], total = 0): Promise<Map<string, Outcome>> {
  // with this Node: that of PATH may be too old for the tests
  const program = join(import.meta.dirname, '..', 'node_modules', '.bin', 'tap')
  const tap = spawn(process.execPath, [program, ...args], { stdio: ['inherit', 'pipe', 'inherit'] })
  const ended = once(tap, 'close')
  const done = new Map<string, Outcome>()
  const none = (): Outcome => ({ passed: 0, failed: 0, skipped: 0, ms: 0, failures: [] })
  const startedAt = performance.now()
  let current = none()
  let failing = false
  for await (const line of createInterface({ input: tap.stdout })) {
    process.stdout.write(`${line}\n`)
    const [, indent, verdict, rest = ''] = line.match(/^( *)(ok|not ok) \d+(.*)$/) ?? []
    if (verdict !== undefined && indent !== '') {
      failing = verdict === 'not ok'
      if (/# SKIP/i.test(rest)) current.skipped++
      else if (!/ # time=|{$/.test(rest)) current[failing ? 'failed' : 'passed']++
    }
    if (failing) current.failures.push(line)
    if (verdict === undefined || indent !== '') continue
    const [, file = rest, ms = '0'] = rest.match(/ - (\S+)(?: # time=([\d.]+)ms)?/) ?? []
    // tap prints this line after a file that timed out, which is counted already
    if (file === 'timeout!') continue
    // a file that crashed has printed no failed assertion
    if (verdict === 'not ok') current.failed = Math.max(1, current.failed)
    current.ms = Number(ms)
    done.set(file, current)
    if (done.size < total) tellProgress(done, total, performance.now() - startedAt)
    current = none()
    failing = false
  }
  await ended
  return done
}

/** Prints how far the run is. The time left is a guess, because some files take much longer than others. */
function tellProgress(done: Map<string, Outcome>, total: number, ms: number): void {
  const failing = [...done.values()].filter(({ failed }) => failed > 0).length
  const minutes = Math.ceil(((ms / done.size) * (total - done.size)) / 60_000)
  const verdict = failing > 0 ? `, ${failing} failed` : ''
  process.stdout.write(`# ${done.size} of ${total} files${verdict}, about ${minutes} min left\n`)
}

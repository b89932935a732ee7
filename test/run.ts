import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { startEmbedded } from '../db/embedded.ts'
import { migrate } from '../db/migrate.ts'
import { changedSince, testsTouchedBy } from './changed-files.ts'
import { createDatabase, type DatabaseUrls, templateDatabase } from './databases.ts'
import { untilMachineHasTime, watchMachine } from './machine.ts'
import { bundlePackages } from './packages.ts'
import { startPgBouncer } from './pgbouncer.ts'
import { findRehearsal, type Outcome, runFile, runFiles } from './test-files.ts'

/*
 * Starts one PostgreSQL for the whole run, creates the database that every test copies, and runs the files of tests:
 * those that are named, with `--changed` those that a change since a commit can have touched, with `--all` or in CI all, and
 * else all but rehearsals, which are reported as skipped. Failures are printed again at the end, and the last line counts
 * them. With TEST_PGBOUNCER=1 the product connects through PgBouncer in transaction mode.
 */

/** The line with which a file says that a busy machine may break its bounds in time, and what it bounds. */
const bounded = /^\/\/ bounded in time: \S/m
/** In CI, more second runs than this count as a failure. */
const mostSecondRuns = 3

/** Files that run at once: more than there are cores, because a file often waits for its server or its database. */
const jobs = 5

const { values: given, positionals: named } = readArguments()
const timeoutSeconds = Number(given.timeout)
if (!(timeoutSeconds > 0)) refuse(`--timeout=${given.timeout}: must be seconds`)
const leftOut: string[] = []
const files = chooseFiles()

const dir = mkdtempSync(join(tmpdir(), 'aggios-test-'))
const server = await startEmbedded(dir, { durable: false })
const app = server.url('aggios_app', 'DATABASE')
const pooler = process.env.TEST_PGBOUNCER === '1' ? await startPgBouncer(app) : undefined
const urls: DatabaseUrls = {
  postgres: server.url('postgres', 'DATABASE'),
  owner: server.url('aggios_owner', 'DATABASE'),
  app,
  backup: server.url('aggios_backup', 'DATABASE'),
  serving: pooler?.through(app) ?? app
}
process.env.TEST_DIR = join(dir, 'data')
process.env.TEST_POSTGRES = JSON.stringify(urls)
await createDatabase(templateDatabase, 'template1')
await migrate(urls.owner.replace('DATABASE', templateDatabase))

/** No file runs again after this time. */
const lastRerunMs = 55 * 60_000

const options = { timeoutSeconds, preload: await bundlePackages() }
const outcomes = new Map<string, Outcome>()
const wasShortOfTime = watchMachine()
const startedAt = performance.now()
// one file shows all that it prints, many only what went wrong
if (files.length === 1) for (const file of files) outcomes.set(file, await runFile(file, { ...options, show: true }))
else await runFiles(files, { ...options, jobs, onDone: tell })
const broken = () => [...outcomes].filter(([, { failed }]) => failed > 0)
const secondRuns: string[] = []
// a file with bounds in time that failed beside others runs again, alone: the bounds are for a machine that isn't busy.
// If many files failed, they failed for another reason, unless the hypervisor took too much CPU time
if (files.length > 1 && (broken().length <= 6 || wasShortOfTime())) {
  for (const [file, { failures }] of broken()) {
    if (!bounded.test(sourceOf(file))) continue
    print(`${file} failed beside others and runs once more, alone`, failures)
    secondRuns.push(file)
    await decide(file)
  }
}
await pooler?.stop()
await server.stop()
rmSync(dir, { recursive: true, force: true })

for (const [file, { failures }] of broken()) print(`${file} failed`, failures)
if (files.length > 1) {
  print('the slowest', largest('ms', 1000))
  print('the most CPU time', largest('cpuSeconds', 1))
}
print(`${secondRuns.length} needed a second run`, secondRuns)
if (leftOut.length > 0) print(`${leftOut.length} rehearsals were left out: npm test -- --all runs them`, leftOut)
const skips = [...outcomes].flatMap(([file, each]) => each.skips.map((line) => `${file}: ${line.trim()}`))
if (skips.length > 0) print('skipped', skips)
const sum = (key: 'passed' | 'failed' | 'skipped') => [...outcomes.values()].reduce((all, each) => all + each[key], 0)
const skipped = sum('skipped') + leftOut.length
const excess = process.env.CI && secondRuns.length > mostSecondRuns ? 1 : 0
if (excess) print(`more than ${mostSecondRuns} needed a second run, which counts as a failure`, [])
const failed = sum('failed') + excess
process.stdout.write(`\n${sum('passed')} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`)
process.exitCode = failed > 0 ? 1 : 0

function readArguments() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        all: { type: 'boolean' },
        changed: { type: 'boolean' },
        since: { type: 'string', default: 'HEAD' },
        timeout: { type: 'string', default: '600' }
      }
    })
  } catch (err) {
    return refuse((err as Error).message)
  }
}

function refuse(line: string): never {
  process.stderr.write(`${line}\n`)
  process.exit(64)
}

/** The files to run, as paths from the root. A name that is no file of tests ends the run. */
function chooseFiles(): string[] {
  if (given.changed) {
    const changed = changedSince(given.since)
    const touched = testsTouchedBy(changed)
    process.stdout.write(`# ${changed.length} files changed since ${given.since}, ${touched.length} files of tests\n`)
    return touched
  }
  const all = readdirSync(import.meta.dirname).filter((name) => name.endsWith('.test.ts'))
  if (named.length === 0) return all.map((name) => `test/${name}`).filter(isWanted)
  for (const name of named) {
    if (all.some((file) => `test/${file}` === name)) continue
    refuse(`${name} is no file of tests: name one as test/auth.test.ts`)
  }
  return named
}

/** Whether a file runs when none is named. Notes the rehearsals that do not. */
function isWanted(file: string): boolean {
  const what = findRehearsal(sourceOf(file))
  if (what === undefined || given.all || process.env.CI) return true
  leftOut.push(`${file}: ${what}`)
  return false
}

function sourceOf(file: string): string {
  return readFileSync(join(import.meta.dirname, '..', file), 'utf8')
}

/**
 * Runs a file alone, up to three times. A failure counts at once if the machine was not busy, else after the third run.
 */
async function decide(file: string): Promise<void> {
  for (let runs = 0; runs < 3 && performance.now() < lastRerunMs; runs++) {
    await untilMachineHasTime()
    const wasShortOfTime = watchMachine()
    outcomes.set(file, await runFile(file, { ...options, show: true }))
    if (outcomes.get(file)?.failed === 0 || !wasShortOfTime()) return
  }
}

/** The ten files with the largest times, in seconds. */
function largest(key: 'ms' | 'cpuSeconds', unitsPerSecond: number): string[] {
  const sorted = [...outcomes].sort(([, one], [, other]) => other[key] - one[key])
  return sorted.slice(0, 10).map(([file, outcome]) => {
    return `${(outcome[key] / unitsPerSecond).toFixed(0).padStart(5)} s  ${file}`
  })
}

function print(what: string, lines: string[]): void {
  process.stdout.write(`\n# ${what}\n${lines.slice(0, 150).join('\n')}\n`)
}

/** Keeps the result of a file, and prints it with how far the run is. The time left is a guess: some files take long. */
function tell(file: string, outcome: Outcome): void {
  outcomes.set(file, outcome)
  const { passed, failed, skipped, ms, failures } = outcome
  const counts = `${passed} passed${failed > 0 ? `, ${failed} failed` : ''}${skipped > 0 ? `, ${skipped} skipped` : ''}`
  const done = outcomes.size
  const left = ((performance.now() - startedAt) / done) * (files.length - done)
  const progress = `${done} of ${files.length}, about ${Math.ceil(left / 60_000)} min left`
  process.stdout.write(
    `${failed > 0 ? 'not ok' : 'ok'} ${file}: ${counts} in ${(ms / 1000).toFixed(1)} s, CPU ${outcome.cpuSeconds.toFixed(1)} s (${progress})\n`
  )
  if (failed > 0) process.stdout.write(`${failures.slice(0, 150).join('\n')}\n`)
}

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { startEmbedded } from '../db/embedded.ts'
import { migrate } from '../db/migrate.ts'
import { createDatabase, type DatabaseUrls, templateDatabase } from './databases.ts'
import { untilMachineHasTime, watchMachine } from './machine.ts'
import { startPgBouncer } from './pgbouncer.ts'

/*
 * Starts one PostgreSQL for the whole run, makes the database that every test copies, and runs tap on the files that are
 * named, or on all. What failed is told again at the end; the last line counts. With TEST_PGBOUNCER=1 the product reaches it
 * through PgBouncer in transaction mode.
 */

/** What one file came to, in assertions. */
type Outcome = { passed: number; failed: number; skipped: number; failures: string[] }

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
process.env.TEST_POSTGRES = JSON.stringify(urls)
await createDatabase(templateDatabase, 'template1')
await migrate(urls.owner.replace('DATABASE', templateDatabase))

/** Nothing runs once more after this. */
const lastRerunMs = 55 * 60_000

const named = process.argv.slice(2)
const wasShortOfTime = watchMachine()
const outcomes = await runTap(named)
const broken = () => [...outcomes].filter(([, { failed }]) => failed > 0)
// bounds in time are for a machine that has time: a file that failed beside others is decided by a run of its own. Many are no
// accident, unless there was no time for any
if (named.length === 0 && (broken().length <= 6 || wasShortOfTime())) {
  for (const [file, { failures }] of broken()) {
    // what tap says of the whole run is no file
    if (!file.startsWith('test/')) continue
    tell(`${file} failed beside others and runs once more, alone`, failures)
    await decide(file)
  }
}
await pooler?.stop()
await server.stop()
rmSync(dir, { recursive: true, force: true })

for (const [file, { failures }] of broken()) tell(`${file} failed`, failures)
const sum = (key: 'passed' | 'failed' | 'skipped') => [...outcomes.values()].reduce((all, each) => all + each[key], 0)
const skipped = sum('skipped')
const failed = outcomes.size === 0 ? 1 : sum('failed')
process.stdout.write(`\n${sum('passed')} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`)
process.exitCode = failed > 0 ? 1 : 0

/** Runs a file alone. It fails by a run in which the machine had time, or by the third; and a run of the tests must end. */
async function decide(file: string): Promise<void> {
  for (let runs = 0; runs < 3 && performance.now() < lastRerunMs; runs++) {
    await untilMachineHasTime()
    const wasShortOfTime = watchMachine()
    for (const [again, outcome] of await runTap([file])) outcomes.set(again, outcome)
    if (outcomes.get(file)?.failed === 0 || !wasShortOfTime()) return
  }
}

function tell(what: string, failures: string[]): void {
  process.stdout.write(`\n# ${what}\n${failures.slice(0, 150).join('\n')}\n`)
}

/** Runs tap and reads what it prints: an assertion is a line without a time, what is indented belongs to the file below it. */
async function runTap(args: string[]): Promise<Map<string, Outcome>> {
  // by this Node and not by the one of PATH, which may be too old to read the tests
  const program = join(import.meta.dirname, '..', 'node_modules', '.bin', 'tap')
  const tap = spawn(process.execPath, [program, ...args], { stdio: ['inherit', 'pipe', 'inherit'] })
  const ended = once(tap, 'close')
  const files = new Map<string, Outcome>()
  const none = (): Outcome => ({ passed: 0, failed: 0, skipped: 0, failures: [] })
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
    const file = rest.match(/ - (\S+)/)?.[1] ?? rest
    // one that ended before it could say what was wrong
    if (verdict === 'not ok') current.failed = Math.max(1, current.failed)
    files.set(file, current)
    current = none()
    failing = false
  }
  await ended
  return files
}

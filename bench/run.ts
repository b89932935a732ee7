import { parseArgs } from 'node:util'
import { type Bench, type Scenario, sizes } from './bench.ts'
import { stopChildren } from './children.ts'
import { type Dataset, openDatabase } from './database.ts'
import { describeDisturbance } from './disturbance.ts'
import { chooseLoadGenerator } from './load.ts'
import { describeMachine, type Findings, figureRows, goalRows, pairRows, show, textTable, writePage } from './report.ts'
import { dpop } from './scenarios/dpop.ts'
import { growth } from './scenarios/growth.ts'
import { hashing } from './scenarios/hashing.ts'
import { keys } from './scenarios/keys.ts'
import { mix } from './scenarios/mix.ts'
import { pipeline } from './scenarios/pipeline.ts'
import { profile } from './scenarios/profile.ts'
import { concurrency, isolation, me, refusals, replies, tenants } from './scenarios/reads.ts'
import { pressure, refresh, signIn } from './scenarios/sessions.ts'
import { traces } from './scenarios/traces.ts'
import { version } from './scenarios/version.ts'
import { webhooks } from './scenarios/webhooks.ts'
import { largeFile, memory, processes, start, upload } from './scenarios/whole.ts'

/*
 * npm run bench                       runs all scenarios; writes docs/performance.md and its plot
 * npm run bench -- --quick            prints the most important ratios, one per line, within three minutes
 * npm run bench -- --only <scenario>  runs one scenario; can be repeated
 *   --pairs 5 --seconds 3             the number of pairs, and the seconds of each measurement
 */

const usage = 'usage: npm run bench -- [--quick] [--only <scenario>]... [--pairs <count>] [--seconds <count>]'

const scenarios: Scenario[] = [
  me,
  replies,
  refusals,
  isolation,
  refresh,
  pressure,
  start,
  // takes longest, and needs a dataset of its own
  tenants,
  concurrency,
  processes,
  mix,
  signIn,
  upload,
  largeFile,
  memory,
  hashing,
  pipeline,
  version,
  dpop,
  keys,
  webhooks,
  growth,
  traces,
  profile
]

const say = (line: string) => void process.stderr.write(`${line}\n`)
const print = (text: string) => void process.stdout.write(`${text}\n`)

function refuse(reason: string): never {
  say(`${reason}\n${usage}`)
  process.exit(64)
}

function parseOptions() {
  try {
    return parseArgs({
      options: {
        quick: { type: 'boolean', default: false },
        only: { type: 'string', multiple: true, default: [] },
        pairs: { type: 'string' },
        seconds: { type: 'string' },
        help: { type: 'boolean', short: 'h', default: false }
      }
    }).values
  } catch (err) {
    return refuse((err as Error).message)
  }
}

function readArguments() {
  const { quick, only, help, ...counts } = parseOptions()
  const known = `scenarios: ${scenarios.map(({ name }) => name).join(', ')}`
  if (help) {
    print(`${usage}\n${known}`)
    process.exit(0)
  }
  const unknown = only.filter((name) => !scenarios.some((scenario) => scenario.name === name))
  if (unknown.length > 0) refuse(`there is no scenario ${unknown.join(', ')}; ${known}`)
  const count = (text: string | undefined, fallback: number) => {
    if (text === undefined) return fallback
    return /^[1-9]\d{0,2}$/.test(text) ? Number(text) : refuse(`${text} is not a number from 1 to 999`)
  }
  const pairs = count(counts.pairs, quick ? 3 : 5)
  const seconds = count(counts.seconds, quick ? 1 : 3)
  const chosen = scenarios.filter(({ name, inQuick }) => (only.length > 0 ? only.includes(name) : !quick || inQuick))
  return { quick, whole: !quick && only.length === 0, pairs, seconds, chosen }
}

/** Makes a value on first use, and keeps it. */
function lazily<T>(make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined
  return () => {
    made ??= make()
    return made
  }
}

/** A quick run starts no scenario after this time: the longest takes half a minute, and a minute on a busy machine. */
const quickEndsMs = 120_000

const { quick, whole, pairs, seconds, chosen } = readArguments()
// a quick run has no time for repeats
const tries = quick ? 1 : 3
const load = chooseLoadGenerator()
const database = await openDatabase(say)
const findings: Findings = { figures: [], pairs: [], skipped: [] }

const thousand = lazily<Dataset>(() => database.dataset(sizes.thousand))
const bench: Bench = {
  quick,
  load,
  database,
  thousand,
  hundredThousand: lazily(() => database.dataset(sizes.hundredThousand)),
  withoutRowSecurity: lazily(async () => database.withoutRowSecurity(await thousand(), sizes.thousand)),
  conditions: (connections = 64) => ({ load, databasePid: database.pid, pairs, seconds, tries, connections }),
  figure(figure) {
    if (Number.isNaN(figure.value)) return bench.skip(figure.name, 'this system has no /proc to read it from')
    findings.figures.push(figure)
    if (figure.unit === 'ratio') print(`${figure.name} ${figure.value.toFixed(2)}`)
    else if (!quick) print(`${figure.name} ${show(figure)}`)
  },
  pair(name, pair) {
    findings.pairs.push({ name, pair })
    bench.figure({ name, value: pair.ratio.median, unit: 'ratio' })
    const { median, low, high } = pair.cpuRatio
    const detail = `${low.toFixed(2)} to ${high.toFixed(2)}`
    bench.figure({ name: `${name}/cpu`, value: median, unit: 'ratio', detail })
  },
  skip(name, reason) {
    findings.skipped.push({ name, reason })
    say(`skipped ${name}: ${reason}`)
  }
}

try {
  for (const scenario of chosen) {
    if (quick && performance.now() > quickEndsMs) {
      bench.skip(scenario.name, 'a quick run is short, and this machine is busy')
      continue
    }
    say(`${scenario.name}: ${scenario.about}`)
    try {
      await scenario.run(bench)
    } catch (err) {
      // what the others have measured is still of use
      say(`${scenario.name} failed: ${(err as Error).stack}`)
      process.exitCode = 1
      stopChildren()
    }
  }
} finally {
  await database.stop()
}

const conditions = `64 connections, ${pairs} pairs of ${seconds} s`
const machine = [
  describeMachine({ loadGenerator: load.name, postgres: database.version, conditions }),
  describeDisturbance()
]
  .join(' ')
  .trimEnd()
print(`\n${machine}\n\n${textTable(goalRows(findings))}`)
if (!quick) print(`\n${textTable(pairRows(findings))}\n\n${textTable(figureRows(findings))}`)
if (whole && process.exitCode !== 1) writePage(findings, machine)

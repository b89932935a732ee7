import { parseArgs } from 'node:util'
import { onSignals } from '../src/signals.ts'
import { archiveSkip } from './archive.ts'
import { runDrill } from './drill-run.ts'

/*
 * `npm run drill -- --agencies 50 --people 200 --clients 16 --seconds 60`: destroys an installation under load and restores it. Exits with
 * 0 when nothing was lost and everything is as it was, else with 1, and with 69 where a program is missing. With --json the report is
 * the only output on stdout. If this process is killed, the servers end too.
 */

const usage = `npm run drill -- [--agencies 3] [--people 0] [--clients 4] [--seconds 3] [--file-bytes 2000] [--json]`
const numbers = { agencies: '3', people: '0', clients: '4', seconds: '3', 'file-bytes': '2000' } as const

const { values } = readArguments()
if (archiveSkip) refuse(69, archiveSkip)

const started: (() => unknown)[] = []
async function end(code: number): Promise<never> {
  for (const work of started.reverse()) await work()
  process.exit(code)
}
onSignals(
  () => end(130),
  () => process.exit(130)
)

const say = (line: string) => void (values.json ? process.stderr : process.stdout).write(`${line}\n`)
const number = (name: keyof typeof numbers) => Number(values[name] ?? numbers[name])
try {
  const report = await runDrill(
    { teardown: (work) => started.push(work) },
    {
      agencies: number('agencies'),
      people: number('people'),
      clients: number('clients'),
      seconds: number('seconds'),
      fileBytes: number('file-bytes')
    },
    say
  )
  if (values.json) process.stdout.write(`${JSON.stringify(report)}\n`)
  else {
    const { seconds, problems, lost, ...figures } = report
    say(
      `restored in ${seconds.until_it_serves} s: the database in ${seconds.database} s, the files in ${seconds.files} s`
    )
    say(
      `${lost} of ${figures.acknowledged_before} acknowledged writes lost; ${figures.rows} rows, ${figures.objects} objects and ${figures.audit_chains} audit logs compared`
    )
    for (const problem of problems) say(`  ${problem}`)
  }
  await end(report.ok ? 0 : 1)
} catch (err) {
  process.stderr.write(`the drill failed: ${err instanceof Error ? err.stack : err}\n`)
  await end(1)
}

function readArguments() {
  try {
    const options = Object.fromEntries(Object.keys(numbers).map((name) => [name, { type: 'string' as const }]))
    const parsed = parseArgs({ options: { ...options, json: { type: 'boolean' } } }) as {
      values: Partial<Record<keyof typeof numbers, string>> & { json?: boolean }
    }
    for (const name of Object.keys(numbers) as (keyof typeof numbers)[]) {
      if (!/^\d{1,9}$/.test(parsed.values[name] ?? '0')) throw new Error(`--${name} must be a number`)
    }
    return parsed
  } catch (err) {
    return refuse(2, `${(err as Error).message}; ${usage}`)
  }
}

function refuse(code: number, line: string): never {
  process.stderr.write(`${line}\n`)
  process.exit(code)
}

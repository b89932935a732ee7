import { Option } from 'commander'
import { findEmbeddedUrl } from '../../db/embedded.ts'
import { type Config, readConfig } from '../config/config.ts'
import { readEnvironment } from '../config/env-file.ts'
import type { Environment } from '../config/environment.ts'
import { InvalidConfiguration } from '../config/invalid-configuration.ts'
import { call, createOperatorCommand } from './command.ts'
import { examine, type Part, parts, type Report, reportOfSettings } from './doctor/doctor.ts'
import { knownHolesAsOf } from './doctor/known-holes.ts'
import { exitCodes, renderKinds, renderReport } from './doctor/report-text.ts'

const help = `
Known holes of versions are as of ${knownHolesAsOf}.

Exit codes:
  0   nothing was found
  3   warnings
  4   errors
  2   unknown arguments`

export const command = createOperatorCommand(
  'doctor',
  'Looks at an installation with the settings of its server, and says what is wrong and what to do. Changes nothing. Servers may run meanwhile.'
)
  .addOption(new Option('--only <parts...>', 'look at these parts only').choices(parts))
  .option('--codes', 'print everything that can be found, as a table', false)
  .addHelpText('after', help)
  .action(look)

async function look({ codes, only }: { codes: boolean; only?: Part[] }): Promise<void> {
  if (codes) return void process.stdout.write(`${renderKinds()}\n`)
  const report = await makeReport(only)
  const text = call.json ? JSON.stringify(report, null, 2) : renderReport(report)
  // connections to services may stay open for some seconds
  process.stdout.write(`${text}\n`, () => process.exit(exitCodes[report.status]))
}

async function makeReport(only: readonly Part[] | undefined): Promise<Report> {
  let env: Environment
  let config: Config
  try {
    env = readEnvironment()
    config = readConfig(env)
  } catch (err) {
    if (err instanceof InvalidConfiguration) return reportOfSettings(err.problems)
    throw err
  }
  return examine({ config, env, databaseUrl: config.databaseUrl ?? findEmbeddedUrl(config.dataDir) }, only && { only })
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()

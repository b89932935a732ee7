import { migrate, setAuditRetention } from '../../db/migrate.ts'
import { readMigrationConfig } from '../config/config.ts'
import { readEnvironment } from '../config/env-file.ts'
import { InvalidConfiguration } from '../config/invalid-configuration.ts'
import { describe } from '../error-text.ts'
import { call, createOperatorCommand } from './command.ts'
import { end, say } from './operator.ts'

/*
 * Migrates as a separate job, so that the serving processes need no credentials of the owner.
 */

const help = `
Environment:
  DATABASE_OWNER_URL   the database, as aggios_owner and directly to PostgreSQL; or DATABASE_OWNER_URL_FILE
  AUDIT_RETENTION      days that audit events are kept: 0 for ever, else 28 at least; without it nothing changes

Exit codes:
  0   the schema is up to date
  1   a step failed, and left nothing behind; an index could not be built; or the database can't be reached
  2   unknown arguments
  78  the environment is not as it should be`

export const command = createOperatorCommand(
  'migrate',
  'Brings the schema of the database up to date, and names the steps that it applied. Can be repeated, and run several times at once. Older versions of the product go on serving meanwhile, also while an index on a large table is built. Waits half a minute for a database that is just starting.'
)
command.addHelpText('after', help).action(bringUpToDate)
async function bringUpToDate(): Promise<void> {
  try {
    const config = readMigrationConfig(readEnvironment())
    const applied = await migrate(config.databaseOwnerUrl, (line) => void process.stderr.write(`${line}\n`))
    for (const step of applied) say(`applied ${step}`)
    say('the schema is up to date')
    const days = await setAuditRetention(config.databaseOwnerUrl, config.auditRetention)
    say(`audit events are kept ${days === 0 ? 'for ever' : `for ${days} days`}`)
    if (call.json) end(0, 'the schema is up to date')
  } catch (err) {
    if (err instanceof InvalidConfiguration) end(78, err.message)
    end(1, `the schema could not be brought up to date: ${describe(err)}`)
  }
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()

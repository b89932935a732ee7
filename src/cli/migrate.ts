import { parseArgs } from 'node:util'
import { migrate, setAuditRetention } from '../../db/migrate.ts'
import { InvalidConfiguration, readMigrationConfig } from '../config.ts'
import { describe } from '../reasons.ts'
import { end } from './operator.ts'

/*
 * npm run migrate
 *
 * Brings the schema up to date and sets what only the owner may set, as a job of its own: the processes that serve then need no
 * owner credentials.
 */

const help = `usage: migrate

Brings the schema of the database up to date, and names the steps that it applied. Can be repeated, and run several
times at once. Older versions of the product go on serving meanwhile.

environment:
  DATABASE_OWNER_URL   the database, as aggios_owner and directly to PostgreSQL; or DATABASE_OWNER_URL_FILE
  AUDIT_RETENTION      days that audit events are kept: 0 for ever, else 28 at least; without it nothing changes

exit codes:
  0   the schema is up to date
  1   a step failed, and left nothing behind
  64  unknown arguments
  78  the environment is not as it should be`

function readArguments() {
  try {
    return parseArgs({ options: { help: { type: 'boolean', short: 'h' } } }).values
  } catch {
    return end(64, help)
  }
}

if (readArguments().help) {
  process.stdout.write(`${help}\n`)
  process.exit(0)
}

try {
  const config = readMigrationConfig(process.env)
  const applied = await migrate(config.databaseOwnerUrl)
  for (const step of applied) process.stdout.write(`applied ${step}\n`)
  process.stdout.write('the schema is up to date\n')
  const days = await setAuditRetention(config.databaseOwnerUrl, config.auditRetention)
  process.stdout.write(`audit events are kept ${days === 0 ? 'for ever' : `for ${days} days`}\n`)
} catch (err) {
  if (err instanceof InvalidConfiguration) end(78, err.message)
  end(1, `the schema could not be brought up to date: ${describe(err)}`)
}

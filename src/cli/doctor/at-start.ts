import type { FastifyBaseLogger } from 'fastify'
import type { Config } from '../../config/config.ts'
import { describe } from '../../error-text.ts'
import { examine } from './doctor.ts'

/**
 * Looks at the installation once, after a start in production, and logs each finding as a warning. It leaves out what
 * works only once this server does. The server serves meanwhile, and nothing depends on the result. Never rejects.
 */
export async function examineAtStart(config: Config, log: FastifyBaseLogger): Promise<void> {
  try {
    const options = { config, env: process.env, databaseUrl: config.databaseUrl }
    const { status, findings, not_checked } = await examine(options, { atStart: true })
    for (const { code, severity, title, seen, remedy, docs } of findings) {
      log.warn({ finding: { code, severity, seen, remedy, docs } }, title)
    }
    log.info({ status, findings: findings.length, not_checked: not_checked.length }, 'the installation was examined')
  } catch (err) {
    log.warn(`the installation could not be examined: ${describe(err)}`)
  }
}

import { endSessionByOperator, listSessions } from '../../db/queries/operations/operators.ts'
import { revocationSeconds } from '../auth/token-life.ts'
import { isUuid } from '../uuids.ts'
import { createOperatorCommand, endsSomething } from './command.ts'
import { operate, printable, Refusal, requireTenant, tenantScope } from './operator.ts'

/** More sessions than this are not listed. */
const maxListed = 1000

export const command = createOperatorCommand(
  'sessions',
  'Lists and ends the sessions of an agency. Those of a person are shown by "people show", and ended by "people sign-out".'
)

command
  .command('list <slug>')
  .description(`Lists the open sessions of an agency, the newest first, ${maxListed} at most.`)
  .action(list)

endsSomething(command.command('end <slug> <id>'), 'ends a session')
  .description(
    'Ends one session. Its tokens are refused everywhere within a second, and the agency sees it in its audit log.'
  )
  .action(endOne)

function list(given: string): Promise<never> {
  return operate(async (gate, config) => {
    const { id: tenant_id, slug } = await requireTenant(gate, given)
    const values = { tenant_id, idle_seconds: config.refreshTokenTtl, limit: maxListed + 1 }
    const found = await gate.query(tenantScope(tenant_id), listSessions, values)
    const sessions = found.slice(0, maxListed)
    const lines = sessions.map(({ id, email, last_used_at, ip, user_agent }) =>
      [`${id}: ${email}`, `last used ${last_used_at.toISOString()}`, ip, printable(user_agent)]
        .filter(Boolean)
        .join(', ')
    )
    const count = found.length > maxListed ? `more than ${maxListed}` : String(sessions.length)
    return {
      text: [...lines, `open sessions of ${slug}: ${count}`].join('\n'),
      data: { sessions, more: found.length > maxListed }
    }
  })
}

function endOne(given: string, session_id: string): Promise<never> {
  return operate(async (gate, config) => {
    const { id: tenant_id, slug } = await requireTenant(gate, given)
    if (!isUuid(session_id.toLowerCase())) throw new Refusal(`${session_id} is no id of a session`)
    const values = { tenant_id, session_id, token_seconds: revocationSeconds(config) }
    const [ended] = await gate.query(tenantScope(tenant_id), endSessionByOperator, values)
    if (!ended) throw new Refusal(`${slug} has no open session ${session_id}`)
    return `the session ${session_id} is ended`
  })
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()

import type { TenantGate } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { findTenant } from '../../db/queries/directory.ts'
import { endSessionByOperator, listSessions } from '../../db/queries/operations/operators.ts'
import { revocationSeconds } from '../auth/token-life.ts'
import { normalizeSlug } from '../tenancy/slugs.ts'
import { createOperatorCommand, endsSomething } from './command.ts'
import { operate, printable, Refusal } from './operator.ts'

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

if (import.meta.main) await command.parseAsync()

function list(given: string): Promise<never> {
  return operate(async (gate, config) => {
    const { id: tenant_id, slug } = await requireTenant(gate, given)
    const values = { tenant_id, idle_seconds: config.refreshTokenTtl, limit: maxListed + 1 }
    const found = await gate.query(scopeOf(tenant_id), listSessions, values)
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
    if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(session_id))
      throw new Refusal(`${session_id} is no id of a session`)
    const values = { tenant_id, session_id, token_seconds: revocationSeconds(config) }
    const [ended] = await gate.query(scopeOf(tenant_id), endSessionByOperator, values)
    if (!ended) throw new Refusal(`${slug} has no open session ${session_id}`)
    return `the session ${session_id} is ended`
  })
}

const scopeOf = (tenant_id: string) => ({ tenant_id, user_id: null, request: '' })

async function requireTenant(gate: TenantGate, given: string) {
  const slug = normalizeSlug(given)
  const [tenant] = await gate.query(systemScope, findTenant, { slug })
  if (!tenant) throw new Refusal(`there is no agency called ${slug}`)
  return tenant
}

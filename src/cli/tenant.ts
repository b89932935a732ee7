import type { TenantGate } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { findTenant } from '../../db/queries/directory.ts'
import { changePlan, listPlans } from '../../db/queries/plans.ts'
import { setTenantStatus } from '../../db/queries/tenant-status.ts'
import { revocationSeconds } from '../auth/token-life.ts'
import { normalizeSlug } from '../tenancy/slugs.ts'
import { createCommand } from './command.ts'
import { operate, Refusal } from './operator.ts'

const acts = {
  suspend: { status: 'suspended', action: 'tenant.suspended' },
  resume: { status: 'active', action: 'tenant.resumed' }
} as const

const command = createCommand('tenant', 'Changes an agency. A change takes effect in every process within a second.')

command
  .command('suspend <slug>')
  .description('Suspends an agency: its members get 403, everybody else gets 404.')
  .action((slug: string) => setStatus(slug, 'suspend'))

command
  .command('resume <slug>')
  .description('Ends the suspension. Also restores a deleted agency until it is purged.')
  .action((slug: string) => setStatus(slug, 'resume'))

command.command('plan <slug> <plan>').description('Sets the plan of an agency, and with it its limits.').action(setPlan)

await command.parseAsync()

function setStatus(slug: string, act: keyof typeof acts): Promise<never> {
  return operate(async (gate, config) => {
    const tenant = await requireTenant(gate, slug)
    const { status, action } = acts[act]
    await gate.transaction(scopeOf(tenant), (trx) =>
      setTenantStatus(trx, tenant.id, { status, action, tokenSeconds: revocationSeconds(config) })
    )
    return `${slug} is ${status}`
  })
}

function setPlan(slug: string, name: string): Promise<never> {
  return operate(async (gate) => {
    const tenant = await requireTenant(gate, slug)
    const plans = await gate.query(systemScope, listPlans, {})
    const chosen = plans.find((plan) => plan.name === name)
    if (!chosen) {
      throw new Refusal(`there is no plan called ${name}; there are ${plans.map((plan) => plan.name).join(', ')}`)
    }
    await gate.transaction(scopeOf(tenant), (trx) => changePlan(trx, tenant.id, chosen.name))
    return `${slug} has the plan ${chosen.name}`
  })
}

async function requireTenant(gate: TenantGate, given: string) {
  const slug = normalizeSlug(given)
  const [tenant] = await gate.query(systemScope, findTenant, { slug })
  if (!tenant) throw new Refusal(`there is no agency called ${slug}`)
  return tenant
}

function scopeOf({ id }: { id: string }) {
  return { tenant_id: id, user_id: null, request: '' }
}

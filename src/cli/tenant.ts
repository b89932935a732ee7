import { findTenant } from '../../db/directory.ts'
import { changePlan, listPlans } from '../../db/plans.ts'
import { setTenantStatus } from '../../db/tenant-status.ts'
import { readSlug } from '../slugs.ts'
import { revocationSeconds } from '../token-life.ts'
import { end, nobody, operate, Refusal } from './operator.ts'

/*
 * npm run tenant -- suspend <slug>        its people get 403 within a second, everybody else 404
 * npm run tenant -- resume <slug>         also one that was deleted, until it is purged
 * npm run tenant -- plan <slug> <plan>    its limits are those of the plan within a second
 */

const [command, given, plan] = process.argv.slice(2)
const slug = given && readSlug(given)
const acts = {
  suspend: { status: 'suspended', action: 'tenant.suspended' },
  resume: { status: 'active', action: 'tenant.resumed' }
} as const

const act = command === 'suspend' || command === 'resume' ? acts[command] : undefined
if (!slug || !(act || (command === 'plan' && plan))) {
  end(64, 'usage: tenant suspend|resume <slug>\n       tenant plan <slug> <plan>')
}

await operate(async (gate, config) => {
  const [tenant] = await gate.query(nobody, findTenant, { slug })
  if (!tenant) throw new Refusal(`there is no agency called ${slug}`)
  const settings = { tenant_id: tenant.id, user_id: null, request: '' }
  if (act) {
    await gate.transaction(settings, (trx) =>
      setTenantStatus(trx, tenant.id, { ...act, tokenSeconds: revocationSeconds(config) })
    )
    return `${slug} is ${act.status}`
  }
  const plans = await gate.query(nobody, listPlans, {})
  const chosen = plans.find(({ name }) => name === plan)
  if (!chosen)
    throw new Refusal(`there is no plan called ${plan}; there are ${plans.map(({ name }) => name).join(', ')}`)
  await gate.transaction(settings, (trx) => changePlan(trx, tenant.id, chosen.name))
  return `${slug} has the plan ${chosen.name}`
})

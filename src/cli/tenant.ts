import type { TenantGate } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { type Agency, endKeysByOperator, listAgencies } from '../../db/queries/operations/operators.ts'
import { changePlan, listPlans } from '../../db/queries/plans.ts'
import { setTenantStatus } from '../../db/queries/tenant-status.ts'
import { revocationSeconds } from '../auth/token-life.ts'
import { normalizeSlug } from '../tenancy/slugs.ts'
import { createOperatorCommand, endsSomething } from './command.ts'
import { operate, printable, progress, Refusal, requireTenant, tenantScope } from './operator.ts'
import { importTenant } from './tenant-import.ts'
import { restoreTenant } from './tenant-restore.ts'

const acts = {
  suspend: { status: 'suspended', action: 'tenant.suspended' },
  resume: { status: 'active', action: 'tenant.resumed' }
} as const

export const command = createOperatorCommand(
  'tenant',
  'Lists, shows and changes agencies. A change takes effect in every process within a second.'
)

endsSomething(command.command('suspend <slug>'), 'locks everybody out of an agency')
  .description('Suspends an agency: its members get 403, everybody else gets 404.')
  .action((slug: string) => setStatus(slug, 'suspend'))

command
  .command('resume <slug>')
  .description('Ends the suspension. Also restores a deleted agency until it is purged.')
  .action((slug: string) => setStatus(slug, 'resume'))

command.command('plan <slug> <plan>').description('Sets the plan of an agency, and with it its limits.').action(setPlan)

command
  .command('restore <slug>')
  .description('Restores a deleted agency until it is purged. Refuses one that is only suspended.')
  .action(restore)

endsSomething(command.command('rewind <slug>'), 'takes back what an agency has done since that copy')
  .description(
    'Brings an agency back to what it was in another database, which was restored from a backup (RESTORE_DATABASE_URL). Every other agency stays as it is. docs/backups.md says how.'
  )
  .action((slug: string) => restoreTenant(slug))

command
  .command('import <export> <files>')
  .description(
    'Makes an agency from an export of another installation (GET /tenant/export) and a folder with its files, each named by its id. docs/backups.md says how.'
  )
  .option('--slug <slug>', 'the address of the agency here, when the one of the export is taken')
  .action((path: string, folder: string, { slug }: { slug?: string }) => importTenant(path, folder, slug))

endsSomething(command.command('end-keys [slug]'), 'ends every API key of an agency, or of all of them')
  .description(
    'Ends all API keys of an agency, or of every agency, as after a restore: keys that were ended since that copy are good again. They and their tokens are refused everywhere within a second, and each agency sees it in its audit log.'
  )
  .option('--all', 'of every agency', false)
  .action(endKeys)

command.command('list').description('Lists all agencies, by slug.').action(list)

command.command('show <slug>').description('Shows an agency: its status, plan, people and files.').action(show)

/** Agencies that are read at once. */
const batch = 500

function list(): Promise<never> {
  return operate(async (gate) => {
    const agencies: Agency[] = []
    for await (const agency of allAgencies(gate)) agencies.push(agency)
    return { text: agencies.map(describe).join('\n'), data: { agencies } }
  })
}

/** All agencies, by slug. They are read page by page, and each page says how far it is. */
async function* allAgencies(gate: TenantGate): AsyncGenerator<Agency> {
  let count = 0
  for (let after = '', more = true; more; ) {
    const page = await gate.query(systemScope, listAgencies, { one: null, after, batch })
    yield* page
    count += page.length
    after = page.at(-1)?.slug ?? ''
    more = page.length === batch
    if (more) progress(`${count} agencies`)
  }
}

function endKeys(given: string | undefined, { all }: { all: boolean }): Promise<never> {
  return operate(async (gate) => {
    if ((given === undefined) !== all) throw new Refusal('name an agency, or every one by --all')
    const agencies = given === undefined ? allAgencies(gate) : [await requireTenant(gate, given)]
    let ended = 0
    // each agency in a transaction of its own: after a failure the command is repeated
    for await (const { id } of agencies) {
      const [found] = await gate.query(tenantScope(id), endKeysByOperator, { tenant_id: id })
      ended += found?.ended ?? 0
    }
    return `API keys of ${given ?? 'all agencies'} that are ended now: ${ended}`
  })
}

const describe = ({ slug, name, status, plan, purge_at, members, bytes }: Agency) =>
  [
    `${slug}: ${printable(name)}`,
    purge_at ? `deleted, purged after ${purge_at.toISOString()}` : status,
    `plan ${plan}, ${members} people, ${bytes} bytes`
  ].join(', ')

function show(given: string): Promise<never> {
  return operate(async (gate) => {
    const agency = await requireAgency(gate, given)
    return { text: `id ${agency.id}\n${describe(agency)}\nsince ${agency.created_at.toISOString()}`, data: agency }
  })
}

function restore(given: string): Promise<never> {
  return operate(async (gate, config) => {
    const { id, slug, purge_at } = await requireAgency(gate, given)
    if (purge_at === null) throw new Refusal(`${slug} was not deleted`)
    const { status, action } = acts.resume
    await gate.transaction(tenantScope(id), (trx) =>
      setTenantStatus(trx, id, { status, action, tokenSeconds: revocationSeconds(config) })
    )
    return `${slug} is ${status} again`
  })
}

async function requireAgency(gate: TenantGate, given: string): Promise<Agency> {
  const slug = normalizeSlug(given)
  const [agency] = await gate.query(systemScope, listAgencies, { one: slug, after: '', batch: 1 })
  if (!agency) throw new Refusal(`there is no agency called ${slug}`)
  return agency
}

function setStatus(slug: string, act: keyof typeof acts): Promise<never> {
  return operate(async (gate, config) => {
    const tenant = await requireTenant(gate, slug)
    const { status, action } = acts[act]
    await gate.transaction(tenantScope(tenant.id), (trx) =>
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
    await gate.transaction(tenantScope(tenant.id), (trx) => changePlan(trx, tenant.id, chosen.name))
    return `${slug} has the plan ${chosen.name}`
  })
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()

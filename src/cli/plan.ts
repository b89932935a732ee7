import { InvalidArgumentError } from 'commander'
import { systemScope } from '../../db/gate/gate-query.ts'
import { listPlans, type PlanLimits, setPlan } from '../../db/queries/plans.ts'
import { InvalidValue, rate, size } from '../config/value-readers.ts'
import { createOperatorCommand } from './command.ts'
import { operate } from './operator.ts'

type Change = {
  requests?: Pick<PlanLimits, 'requests' | 'window_seconds'>
  storage?: Pick<PlanLimits, 'storage_quota'>
}

export const command = createOperatorCommand(
  'plan',
  'Lists, creates and changes plans. A change takes effect in every process within a second.'
)

command.command('list').description('Lists all plans, and how many agencies have each.').action(list)

command
  .command('set <name>')
  .description('Creates a plan, or changes one. Limits without an option stay as they are.')
  .option('--requests <count/time>', '60000/1m; 0 is no limit, "default" as the settings say', optionParser(rateOf))
  .option('--storage <size>', '100GiB; "default" as the settings say', optionParser(quotaOf))
  .action(set)

/** Turns a reader of settings into a parser of command-line options. */
function optionParser<T>(read: (text: string) => T) {
  return (text: string): T => {
    try {
      return read(text)
    } catch (err) {
      if (err instanceof InvalidValue) throw new InvalidArgumentError(`It ${err.message}.`)
      throw err
    }
  }
}

function rateOf(text: string) {
  if (text === 'default') return { requests: null, window_seconds: null }
  const { max, window_ms } = rate(text)
  return { requests: max, window_seconds: window_ms / 1000 }
}

function quotaOf(text: string) {
  return { storage_quota: text === 'default' ? null : size(text) }
}

function list(): Promise<never> {
  return operate(async (gate) => {
    const plans = await gate.query(systemScope, listPlans, {})
    return { text: plans.map(describe).join('\n'), data: { plans }, onStderr: true }
  })
}

function set(name: string, { requests: limit, storage }: Change): Promise<never> {
  if (!/^[a-z][a-z0-9-]{0,38}$/.test(name)) {
    command.error(`error: '${name}' is no name of a plan: letters a to z, digits and hyphens, 39 at most`)
  }
  return operate(async (gate) => {
    const known = (await gate.query(systemScope, listPlans, {})).find((plan) => plan.name === name)
    const { requests = null, window_seconds = null, storage_quota = null } = { ...known, ...limit, ...storage }
    await gate.query(systemScope, setPlan, { name, requests, window_seconds, storage_quota })
    return describe({ name, requests, window_seconds, storage_quota, tenants: known?.tenants ?? 0 })
  })
}

function describe({
  name,
  requests: max,
  window_seconds,
  storage_quota,
  tenants
}: PlanLimits & { name: string; tenants: number }) {
  const limit = max === null ? 'default' : max === 0 ? 'no limit' : `${max} in ${window_seconds} s`
  return `${name}: requests ${limit}, storage ${storage_quota === null ? 'default' : `${storage_quota} bytes`}, ${tenants} agencies`
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()

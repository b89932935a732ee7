import { parseArgs } from 'node:util'
import { listPlans, type PlanLimits, setPlan } from '../../db/plans.ts'
import { rate, size, Unreadable } from '../config.ts'
import { end, nobody, operate } from './operator.ts'

/*
 * npm run plan -- list
 * npm run plan -- set <name> [--requests 60000/1m] [--storage 100GiB]
 *
 * Makes or changes a plan; every process knows within a second. `--requests 0` is no limit, `default` as the server's settings
 * say; what is not named stays as it is.
 */

const usage = 'usage: plan list\n       plan set <name> [--requests 60000/1m|0|default] [--storage 100GiB|default]'

function readArguments() {
  try {
    const { positionals, values } = parseArgs({
      allowPositionals: true,
      options: { requests: { type: 'string' }, storage: { type: 'string' } }
    })
    return { positionals, ...values }
  } catch {
    return end(64, usage)
  }
}

const { positionals, requests, storage } = readArguments()
const [command, name = ''] = positionals
const wellFormed = command === 'list' ? positionals.length === 1 : command === 'set' && positionals.length === 2
if (!wellFormed || (command === 'set' && !/^[a-z][a-z0-9-]{0,38}$/.test(name))) end(64, usage)

/** What is to change of a plan. */
function readChange(): Partial<PlanLimits> {
  try {
    return {
      ...(requests !== undefined && rateOf(requests)),
      ...(storage !== undefined && { storage_quota: quotaOf(storage) })
    }
  } catch (err) {
    if (err instanceof Unreadable) end(64, `${err.message}\n${usage}`)
    throw err
  }
}

function rateOf(text: string) {
  if (text === 'default') return { requests: null, window_seconds: null }
  const { max, window_ms } = rate(text)
  return { requests: max, window_seconds: window_ms / 1000 }
}

const quotaOf = (text: string) => (text === 'default' ? null : size(text))

function describe({
  name: plan,
  requests: max,
  window_seconds,
  storage_quota,
  tenants
}: PlanLimits & { name: string; tenants: number }) {
  const limit = max === null ? 'default' : max === 0 ? 'no limit' : `${max} in ${window_seconds} s`
  return `${plan}: requests ${limit}, storage ${storage_quota === null ? 'default' : `${storage_quota} bytes`}, ${tenants} agencies`
}

const change = readChange()
await operate(async (gate) => {
  const plans = await gate.query(nobody, listPlans, {})
  if (command === 'list') return plans.map(describe).join('\n')
  const known = plans.find((plan) => plan.name === name)
  const { requests: max = null, window_seconds = null, storage_quota = null } = { ...known, ...change }
  await gate.query(nobody, setPlan, { name, requests: max, window_seconds, storage_quota })
  return describe({ name, requests: max, window_seconds, storage_quota, tenants: known?.tenants ?? 0 })
})

import { sql } from 'kysely'
import type { TenantTransaction } from '../../gate/gate.ts'
import { statement } from '../../gate/statement.ts'

/** A domain of an agency. `verified_at` is null when it is not proven, or not any more. */
export type Domain = {
  name: string
  challenge: string
  created_at: Date
  verified_at: Date | null
  checked_at: Date | null
  failures: number
}

export const domainColumns = sql`name, challenge, created_at, verified_at, checked_at, failures`

/** After so many daily look-ups in a row without the record a proof ends. */
export const maxDomainFailures = 3
const daySeconds = 86_400
/** When nothing could be learned about a domain, it is looked up again after so many seconds. */
const retrySeconds = 3600

export type ClaimedDomain = { tenant_id: string; name: string; challenge: string; due_at: Date }

/** Claims proven domains that were not looked up for a day, leased to the caller for `lease_seconds`. */
export const claimDomains = statement(
  'claim_domains',
  (_, $: { batch: number; lease_seconds: number }) => sql<ClaimedDomain>`
  select tenant_id, name, challenge, due_at from claim_domains(${$.batch}, make_interval(secs => ${$.lease_seconds}))`,
  { writes: true }
)

/**
 * Records that the record with this challenge was found when somebody asked. Resolves to undefined when there is no such
 * domain, or when it was removed and added again meanwhile: then it needs another record.
 */
export async function confirmDomain(
  trx: TenantTransaction,
  { name, challenge }: Pick<Domain, 'name' | 'challenge'>
): Promise<(Domain & { before: Date | null }) | undefined> {
  const { rows } = await sql<Domain & { before: Date | null }>`
    with before as (select name, verified_at from tenant_domains where name = ${name} and challenge = ${challenge} for no key update)
    update tenant_domains d set verified_at = coalesce(d.verified_at, now()), checked_at = now(), failures = 0,
      due_at = now() + make_interval(secs => ${daySeconds})
    from before where d.name = before.name
    returning d.name, d.challenge, d.created_at, d.verified_at, d.checked_at, d.failures, before.verified_at as before`.execute(
    trx
  )
  return rows[0]
}

/**
 * Records a daily look-up, for the holder of the lease only. `unknown` postpones the next one by an hour. Resolves to
 * `lost` when the proof ends by it.
 */
export async function settleDomain(
  trx: TenantTransaction,
  { name, due_at }: ClaimedDomain,
  outcome: 'found' | 'missing' | 'unknown'
): Promise<'kept' | 'lost'> {
  const next = outcome === 'unknown' ? retrySeconds : daySeconds
  const { rows } = await sql<{ lost: boolean }>`
    update tenant_domains d set
      failures = case ${outcome}::text when 'found' then 0 when 'missing' then d.failures + 1 else d.failures end,
      checked_at = case ${outcome}::text when 'unknown' then d.checked_at else now() end,
      verified_at = case when ${outcome}::text = 'missing' and d.failures + 1 >= ${maxDomainFailures} then null else d.verified_at end,
      due_at = now() + make_interval(secs => ${next})
    where d.name = ${name} and d.due_at = ${due_at} and d.verified_at is not null
    returning d.verified_at is null as lost`.execute(trx)
  return rows[0]?.lost ? 'lost' : 'kept'
}

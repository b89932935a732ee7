import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { queueAgencyNotice } from '../../db/queries/accounts/mails.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { type ClaimedDomain, claimDomains, settleDomain } from '../../db/queries/sign-in/domains.ts'
import { processDue } from '../../src/due-work.ts'
import { domainRecord } from '../../src/tenancy/domain-names.ts'
import type { JobResult } from './jobs.ts'

declare module 'fastify' {
  interface FastifyInstance {
    domainChecks: {
      /** Looks all domains up that are due. Otherwise they are looked for once a minute. */
      run(): Promise<JobResult | undefined>
    }
  }
}

const intervalMs = 60_000
/** Domains that are looked up at the same time. */
const batch = 10
/** Longer than the look-ups of two batches, so that no other process does them too. */
const lease_seconds = 60

/**
 * Looks proven domains up again, each once a day. After three days without the record a proof ends, and those who run
 * the agency are told. Name servers that fail or do not answer end no proof: they say nothing about the record.
 *
 * Several processes may run this at once: each domain is leased to one of them.
 */
export default fp(
  async (app) => {
    const counts = { found: 0, missing: 0, unknown: 0 }

    async function check(claimed: ClaimedDomain): Promise<void> {
      const { tenant_id, name, challenge } = claimed
      const record = domainRecord(name, challenge)
      const lookup = await app.dns.findTexts(record.name)
      const outcome = outcomeOf(lookup, record.value)
      counts[outcome]++
      await app.gate.transaction({ tenant_id, user_id: null, request: '' }, async (trx) => {
        if ((await settleDomain(trx, claimed, outcome)) !== 'lost') return
        await recordAudit(trx, { action: 'domain.lost', actor_id: null, detail: { name } })
        await queueAgencyNotice(trx, 'domain_lost', { domain: name }, ['owner', 'admin'])
      })
    }

    const job = app.jobs.define({
      name: 'domain_checks',
      intervalMs,
      tasks: {
        domain_checks: ({ stopping, itemFailed }) =>
          processDue({
            batch,
            concurrency: batch,
            stopping,
            claim: (batch) => app.gate.query(systemScope, claimDomains, { batch, lease_seconds }),
            work: (claimed) => check(claimed).catch((err) => itemFailed(err, { tenant_id: claimed.tenant_id }))
          })
      }
    })

    app.decorate('domainChecks', { run: job.run })
    app.metrics.counter('aggios_domain_checks_total', 'Daily look-ups of proven domains, by outcome', () =>
      Object.entries(counts).map(([outcome, value]) => ({ labels: { outcome }, value }))
    )
  },
  { name: 'domain-checks', dependencies: ['database', 'dns', 'metrics', 'jobs'] }
)

function outcomeOf(lookup: { outcome: string; texts?: string[] }, value: string): 'found' | 'missing' | 'unknown' {
  if (lookup.outcome === 'server_failure' || lookup.outcome === 'timeout') return 'unknown'
  return lookup.texts?.includes(value) ? 'found' : 'missing'
}

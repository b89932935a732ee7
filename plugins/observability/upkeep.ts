import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import { readUpkeep, type Upkeep } from '../../db/queries/operations/upkeep.ts'
import { readWebhookBacklog } from '../../db/queries/webhooks/deliveries.ts'
import type { Sample } from '../../src/metrics.ts'
import type { HealthReport } from './health.ts'

/** Several scrapers, and scrapes in quick succession, share one read. */
const freshForMs = 5000
/** Less than the time in which a process must answer the internal listener. */
const timeoutMs = 2000

type Behind = Upkeep & { webhooks: { waiting: number; seconds: number } }

/**
 * The metrics that have to be asked for: whether the services that this process needs answer, and how far the background
 * jobs are behind. They are read when the metrics are, so nothing is asked where nobody looks. Without a database the
 * latter are left out.
 */
export default fp(
  async (app) => {
    let services: HealthReport | undefined
    let upkeep: Behind | undefined
    let readAt = Number.NEGATIVE_INFINITY

    async function readJobs(): Promise<Behind | undefined> {
      if (upkeep && performance.now() - readAt < freshForMs) return upkeep
      const reads = [
        app.gate.query(systemScope, readUpkeep, {}),
        app.gate.query(systemScope, readWebhookBacklog, {})
      ] as const
      const [[jobs], [webhooks]] = await withTimeout(Promise.all(reads))
      readAt = performance.now()
      return jobs && webhooks && { ...jobs, webhooks }
    }

    app.metrics.refresh(async () => {
      const [report, jobs] = await Promise.allSettled([app.health.report(), readJobs()])
      services = report.status === 'fulfilled' ? report.value : undefined
      upkeep = jobs.status === 'fulfilled' ? jobs.value : undefined
      // without a database there is nothing more to say
      if (jobs.status === 'rejected' && services?.database.status === 'ok') throw jobs.reason
    })

    const eachService = (read: (check: HealthReport['database']) => number) => (): Sample[] =>
      Object.entries(services ?? {}).map(([dependency, check]) => ({ labels: { dependency }, value: read(check) }))
    const behind = (read: (upkeep: Behind) => number) => (): Sample[] => (upkeep ? [{ value: read(upkeep) }] : [])

    const { metrics } = app
    metrics.gauge(
      'aggios_dependency_up',
      'Whether the database, the store of files and Redis answer',
      eachService(({ status }) => Number(status === 'ok'))
    )
    metrics.gauge(
      'aggios_dependency_latency_seconds',
      'How long it took to answer',
      eachService(({ latency_ms }) => latency_ms / 1000)
    )
    metrics.gauge(
      'aggios_mails_due',
      'Mails that should have been sent',
      behind(({ mails_due }) => mails_due)
    )
    metrics.gauge(
      'aggios_mails_due_age_seconds',
      'How long the oldest of them has been due',
      behind(({ mail_seconds }) => mail_seconds)
    )
    metrics.gauge(
      'aggios_webhooks_waiting',
      'Deliveries to enabled webhooks that wait',
      behind(({ webhooks }) => webhooks.waiting)
    )
    metrics.gauge(
      'aggios_webhooks_due_age_seconds',
      'How long the first delivery that could be sent has waited for a sender',
      behind(({ webhooks }) => webhooks.seconds)
    )
    metrics.gauge(
      'aggios_audit_unsealed_seconds',
      'The age of the oldest audit event without a seal',
      behind(({ seal_seconds }) => seal_seconds)
    )
    metrics.gauge(
      'aggios_audit_months_ahead',
      'For how many months after this one the audit log has room; below 0 every change fails',
      behind(({ months_ahead }) => months_ahead)
    )
  },
  { name: 'upkeep', dependencies: ['health', 'database', 'metrics'] }
)

async function withTimeout<T>(work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error('the database did not tell in time how the jobs are')), timeoutMs)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

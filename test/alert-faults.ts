/*
 * Series of a healthy installation one sample a minute, in the notation of promtool, and the faults that each alert is for: which
 * series they change, and which alerts must fire then.
 */

/** The shapes of a series of so many minutes. */
function shapesOf(minutes: number) {
  return {
    constant: (value: number | string) => `${value}x${minutes}`,
    /** A counter that grows by this much in a minute. */
    growing: (by: number) => `0+${by}x${minutes}`,
    /** A counter that begins to grow after this minute. */
    growingFrom: (minute: number, by: number) => `0x${minute} 0+${by}x${minutes - minute}`,
    /** A value that changes at this minute. */
    changing: (minute: number, before: number, after: number) => `${before}x${minute} ${after}x${minutes - minute}`
  }
}

const one = 'instance="a", worker="1"'
const reads = `instance="a", worker="1", method="GET", route="/api/v1/users/me"`

export function healthySeries(minutes: number): Record<string, string> {
  const { constant, growing, changing } = shapesOf(minutes)
  return {
    'up{job="aggios", instance="a"}': constant(1),
    [`aggios_worker_up{${one}}`]: constant(1),
    [`aggios_worker_restarts_total{${one}}`]: changing(30, 0, 1),
    [`nodejs_eventloop_active_seconds_total{${one}}`]: growing(12),
    'nodejs_eventloop_active_seconds_total{instance="a", worker="primary"}': growing(0.1),
    [`process_open_fds{${one}}`]: constant(100),
    [`process_max_fds{${one}}`]: constant(1024),
    [`aggios_build_info{${one}, version="1.0.0", revision="r1", node="v24"}`]: constant(1),
    // a rolling deployment takes minutes
    'aggios_build_info{instance="b", worker="1", version="0.9.0", revision="r0", node="v24"}': `_x40 1x20 _x${minutes - 60}`,
    [`aggios_metric_failures_total{${one}}`]: constant(0),
    [`aggios_dependency_up{${one}, dependency="database"}`]: constant(1),
    [`aggios_dependency_up{${one}, dependency="storage"}`]: constant(1),
    [`aggios_dependency_up{${one}, dependency="redis"}`]: constant(1),
    // clients cause these
    [`aggios_database_errors_total{${one}, class="23"}`]: growing(60),
    [`aggios_database_errors_total{${one}, class="40"}`]: growing(6),
    [`aggios_database_errors_total{${one}, class="57"}`]: growing(0.5),
    [`aggios_pool_waiting{${one}}`]: Array.from({ length: minutes / 2 }, () => '5 0').join(' '),
    [`aggios_pipeline_waiting{${one}}`]: Array.from({ length: minutes / 2 }, () => '900 0').join(' '),
    [`aggios_revocation_lag_seconds{${one}}`]: constant(0.4),
    [`aggios_job_last_success_timestamp_seconds{${one}, task="seal"}`]: growing(60),
    [`aggios_job_last_success_timestamp_seconds{${one}, task="stale_parts"}`]: Array.from(
      { length: Math.ceil(minutes / 60) },
      (_, hour) => `${hour * 3600}x59`
    ).join(' '),
    [`aggios_job_last_success_timestamp_seconds{${one}, task="purge"}`]: growing(60),
    [`aggios_job_interval_seconds{${one}, task="purge"}`]: constant(60),
    [`aggios_job_interval_seconds{${one}, task="seal"}`]: constant(60),
    [`aggios_job_interval_seconds{${one}, task="stale_parts"}`]: constant(3600),
    [`aggios_job_failures_total{${one}, task="seal"}`]: growing(0.05),
    [`aggios_mails_due_age_seconds{${one}}`]: constant(4),
    [`aggios_mails_total{${one}, outcome="sent"}`]: growing(20),
    [`aggios_mails_total{${one}, outcome="failed"}`]: growing(1),
    [`aggios_mails_total{${one}, outcome="undeliverable"}`]: growing(0.5),
    [`aggios_webhooks_due_age_seconds{${one}}`]: constant(20),
    [`aggios_webhook_attempts_total{${one}, outcome="delivered"}`]: growing(30),
    [`aggios_webhook_attempts_total{${one}, outcome="failed"}`]: growing(60),
    [`aggios_webhook_attempts_total{${one}, outcome="given_up"}`]: growing(1),
    [`aggios_event_streams{${one}}`]: Array.from({ length: minutes / 2 }, () => '9900 200').join(' '),
    [`aggios_event_streams_max{${one}}`]: constant(10_000),
    [`aggios_audit_unsealed_seconds{${one}}`]: constant(110),
    [`aggios_audit_months_ahead{${one}}`]: constant(2),
    [`aggios_object_sweep_fenced{${one}}`]: constant(0),
    [`aggios_problems_total{${one}, code="internal_error"}`]: growing(0.1),
    [`aggios_problems_total{${one}, code="overloaded"}`]: growing(1),
    [`aggios_problems_total{${one}, code="unauthenticated"}`]: growing(600),
    [`aggios_uploads_waiting{${one}}`]: constant(10),
    [`aggios_password_hashes_refused_total{${one}}`]: growing(1),
    [`aggios_sign_ins_total{${one}, method="password", outcome="ok"}`]: growing(120),
    [`aggios_sign_ins_total{${one}, method="password", outcome="invalid_credentials"}`]: growing(100),
    [`aggios_sign_ins_total{${one}, method="refresh", outcome="ok"}`]: growing(600),
    [`aggios_sign_ins_total{${one}, method="refresh", outcome="refresh_token_reused"}`]: growing(0.1),
    [`aggios_sign_ins_total{${one}, method="refresh", outcome="unavailable"}`]: growing(0.1),
    [`http_request_duration_seconds_count{${reads}, status="200"}`]: growing(6000),
    [`http_request_duration_seconds_bucket{${reads}, status="200", le="0.25"}`]: growing(5990),
    [`http_request_duration_seconds_count{${reads}, status="401"}`]: growing(900),
    [`http_request_duration_seconds_count{${reads}, status="503"}`]: growing(1),
    // what is long, and probes of a process that shuts down
    [`http_request_duration_seconds_count{${one}, method="GET", route="/api/v1/tenant/export", status="200"}`]:
      growing(600),
    [`http_request_duration_seconds_bucket{${one}, method="GET", route="/api/v1/tenant/export", status="200", le="0.25"}`]:
      constant(0),
    [`http_request_duration_seconds_count{${one}, method="GET", route="/api/v1/health/ready", status="503"}`]:
      growing(600)
  }
}

export type Fault = {
  title: string
  /** Series that differ from the healthy ones, by the beginning of their name. Undefined: the series is gone. */
  series: Record<string, string | undefined>
  /** The alerts that fire, with their severity. */
  fires: string[]
}

const errors = `http_request_duration_seconds_count{${reads}, status="503"}`
const fast = `http_request_duration_seconds_bucket{${reads}, status="200", le="0.25"}`
const failedSignIn = `aggios_sign_ins_total{${one}, method="refresh", outcome="unavailable"}`

/** The length of the series of faults that show soon, and the minute at which most of them begin. */
export const minutes = 90
const last = 50
const { constant, growing, growingFrom, changing } = shapesOf(minutes)

export const faults: readonly Fault[] = [
  {
    title: 'a listener that does not answer',
    series: { 'up{': changing(minutes - 5, 1, 0) },
    fires: ['AggiosDown page']
  },
  { title: 'a scrape job that is gone', series: { 'up{': undefined }, fires: ['AggiosDown page'] },
  {
    title: 'a worker that is silent',
    series: { 'aggios_worker_up{': changing(minutes - 5, 1, 0) },
    fires: ['AggiosWorkerSilent page']
  },
  {
    title: 'workers that end again and again',
    series: { 'aggios_worker_restarts_total{': growingFrom(minutes - 10, 1) },
    fires: ['AggiosWorkersRestart page']
  },
  {
    title: 'a worker without CPU time',
    series: { [`nodejs_eventloop_active_seconds_total{${one}}`]: growing(58) },
    fires: ['AggiosEventLoopBusy ticket']
  },
  {
    title: 'file descriptors that run out',
    series: { 'process_open_fds{': changing(last, 100, 900) },
    fires: ['AggiosFilesRunOut page']
  },
  {
    title: 'a deployment that was left half done',
    series: { 'aggios_build_info{instance="b"': `_x20 1x70` },
    fires: ['AggiosVersionsMixed ticket']
  },
  {
    title: 'a metric that cannot be read',
    series: { 'aggios_metric_failures_total{': growingFrom(last, 1) },
    fires: ['AggiosMetricsIncomplete ticket']
  },
  {
    title: 'a database that is away',
    series: { [`aggios_dependency_up{${one}, dependency="database"}`]: changing(minutes - 3, 1, 0) },
    fires: ['AggiosDatabaseDown page']
  },
  {
    title: 'a store of files that is away',
    series: { [`aggios_dependency_up{${one}, dependency="storage"}`]: changing(minutes - 10, 1, 0) },
    fires: ['AggiosStorageDown page']
  },
  {
    title: 'Redis that is away',
    series: { [`aggios_dependency_up{${one}, dependency="redis"}`]: changing(minutes - 10, 1, 0) },
    fires: ['AggiosRedisDown ticket']
  },
  {
    title: 'statements that take too long',
    series: { [`aggios_database_errors_total{${one}, class="57"}`]: growingFrom(last, 30) },
    fires: ['AggiosDatabaseErrors page']
  },
  {
    title: 'transactions in each other\u2019s way',
    series: { [`aggios_database_errors_total{${one}, class="40"}`]: growingFrom(last, 120) },
    fires: ['AggiosDatabaseConflicts ticket']
  },
  {
    title: 'a pool that is always in use',
    series: { 'aggios_pool_waiting{': changing(minutes - 10, 0, 3) },
    fires: ['AggiosPoolExhausted page']
  },
  {
    title: 'reads that wait behind others',
    series: { 'aggios_pipeline_waiting{': changing(minutes - 10, 0, 800) },
    fires: ['AggiosReadsQueue page']
  },
  {
    title: 'revocations that cannot be read',
    series: { 'aggios_revocation_lag_seconds{': changing(minutes - 3, 0.4, 60) },
    fires: ['AggiosRevocationsOld page']
  },
  {
    title: 'a job that does not succeed any more',
    series: { [`aggios_job_last_success_timestamp_seconds{${one}, task="seal"}`]: `0+60x20 1200x70` },
    fires: ['AggiosJobStuck page']
  },
  {
    title: 'a job that never succeeded',
    series: { [`aggios_job_last_success_timestamp_seconds{${one}, task="purge"}`]: constant(0) },
    fires: ['AggiosJobStuck page']
  },
  {
    title: 'a job that fails in one process',
    series: { 'aggios_job_failures_total{': growingFrom(last, 1) },
    fires: ['AggiosJobFails ticket']
  },
  {
    title: 'mails that nobody sends',
    series: { 'aggios_mails_due_age_seconds{': `4x${last} 0+60x40` },
    fires: ['AggiosMailsLate page']
  },
  {
    title: 'mails that are refused',
    series: { [`aggios_mails_total{${one}, outcome="undeliverable"}`]: growingFrom(last, 10) },
    fires: ['AggiosMailsUndeliverable ticket']
  },
  {
    title: 'webhooks that nobody sends',
    series: { 'aggios_webhooks_due_age_seconds{': `20x${last} 0+60x40` },
    fires: ['AggiosWebhooksLate ticket']
  },
  {
    title: 'a firewall that lets no webhook out',
    series: {
      [`aggios_webhook_attempts_total{${one}, outcome="delivered"}`]: `0+30x${last} 1500x40`,
      [`aggios_webhook_attempts_total{${one}, outcome="failed"}`]: growing(90)
    },
    fires: ['AggiosWebhooksFail ticket']
  },
  {
    title: 'streams of events up to their limit',
    series: { 'aggios_event_streams{': changing(last, 200, 9800) },
    fires: ['AggiosEventStreamsFull ticket']
  },
  {
    title: 'an audit log that is not sealed',
    series: { 'aggios_audit_unsealed_seconds{': `110x${last} 110+60x40` },
    fires: ['AggiosAuditNotSealed ticket']
  },
  {
    title: 'an audit log without its next month',
    series: { 'aggios_audit_months_ahead{': changing(last, 2, 0) },
    fires: ['AggiosAuditMonthsMissing page']
  },
  {
    title: 'a store of another database',
    series: { 'aggios_object_sweep_fenced{': changing(last, 0, 1) },
    fires: ['AggiosStoreFenced ticket']
  },
  {
    title: 'a fault of the product',
    series: { [`aggios_problems_total{${one}, code="internal_error"}`]: growingFrom(last, 3) },
    fires: ['AggiosInternalErrors ticket']
  },
  {
    title: 'queues that are full',
    series: { [`aggios_problems_total{${one}, code="overloaded"}`]: growingFrom(last, 300) },
    fires: ['AggiosOverloaded page']
  },
  {
    title: 'uploads that wait',
    series: { 'aggios_uploads_waiting{': changing(last, 10, 150) },
    fires: ['AggiosUploadsQueue ticket']
  },
  {
    title: 'sign-ins that are turned away',
    series: { 'aggios_password_hashes_refused_total{': growingFrom(last, 60) },
    fires: ['AggiosSignInsRefused page']
  },
  {
    title: 'somebody who guesses passwords',
    series: {
      [`aggios_sign_ins_total{${one}, method="password", outcome="invalid_credentials"}`]: growingFrom(last, 900)
    },
    fires: ['AggiosPasswordsGuessed ticket']
  },
  {
    title: 'stolen refresh tokens',
    series: {
      [`aggios_sign_ins_total{${one}, method="refresh", outcome="refresh_token_reused"}`]: growingFrom(last, 2)
    },
    fires: ['AggiosRefreshTokensReused ticket']
  }
]

/** The length of the series of faults that use up the budget of an objective. */
export const budgetMinutes = 430
const long = shapesOf(budgetMinutes)

export const budgetFaults: readonly Fault[] = [
  {
    title: 'a fifth of requests fails for half an hour',
    series: { [errors]: long.growingFrom(budgetMinutes - 30, 1500) },
    fires: ['AggiosAvailabilityBudget page']
  },
  {
    title: 'almost one in a hundred requests fails all day',
    series: { [errors]: long.growing(60) },
    fires: ['AggiosAvailabilityBudget page', 'AggiosAvailabilityBudget ticket']
  },
  {
    title: 'three in a thousand requests fail all day',
    series: { [errors]: long.growing(20) },
    fires: ['AggiosAvailabilityBudget ticket']
  },
  {
    title: 'everything failed for ten minutes, two hours ago',
    series: { [errors]: `0x300 0+6000x10 60000x120` },
    fires: ['AggiosAvailabilityBudget ticket']
  },
  {
    title: 'reads that are slow at once',
    series: { [fast]: `0+5990x400 2396000+3000x30` },
    fires: ['AggiosLatencyBudget page']
  },
  {
    title: 'reads that are somewhat slow all day',
    series: { [fast]: long.growing(5880) },
    fires: ['AggiosLatencyBudget ticket']
  },
  {
    title: 'sign-ins that fail at once',
    series: { [failedSignIn]: long.growingFrom(budgetMinutes - 30, 200) },
    fires: ['AggiosSignInBudget page']
  },
  {
    title: 'few sign-ins fail, all day',
    series: { [failedSignIn]: long.growing(2) },
    fires: ['AggiosSignInBudget ticket']
  }
]

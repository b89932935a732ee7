/*
 * The dashboards of deploy/observability/grafana, from which `npm run dashboards` makes the files that Grafana reads. Every
 * query is checked against the metrics that there are, and evaluated by a real Prometheus, in test/dashboards.test.ts.
 */

/** The units of Grafana that are used. */
export type Unit = 'reqps' | 's' | 'percentunit' | 'bytes' | 'short'
export type Query = { expr: string; legend: string }
export type Panel = { title: string; unit: Unit; about: string; queries: Query[] }
export type Dashboard = { uid: string; title: string; panels: Panel[] }

const requests = 'http_request_duration_seconds'
const rate = (metric: string, labels = '') => `rate(${metric}{${labels}}[$__rate_interval])`
const quantile = (share: number, by = '') =>
  `histogram_quantile(${share}, sum by (le${by}) (${rate(`${requests}_bucket`)}))`

export const dashboards: Dashboard[] = [
  {
    uid: 'aggios-requests',
    title: 'Aggios: requests',
    panels: [
      {
        title: 'Answers a second, by class of status',
        unit: 'reqps',
        about: 'A rise of 5xx is a fault of the server, one of 4xx that of a client.',
        queries: [
          {
            expr: `sum by (class) (label_replace(${rate(`${requests}_count`)}, "class", "$${'{1}'}xx", "status", "(.).*"))`,
            legend: '{{class}}'
          }
        ]
      },
      {
        title: 'Time to answer',
        unit: 's',
        about: 'From the head of a request to the end of its reply. The objective for reads is 250 ms.',
        queries: [0.5, 0.95, 0.99].map((share) => ({ expr: quantile(share), legend: `p${share * 100}` }))
      },
      {
        title: 'Busiest routes',
        unit: 'reqps',
        about: 'The five that are asked for most.',
        queries: [{ expr: `topk(5, sum by (route) (${rate(`${requests}_count`)}))`, legend: '{{route}}' }]
      },
      {
        title: 'Slowest routes, p95',
        unit: 's',
        about: 'The five that take longest. Sign-ins hash a password, which takes time on purpose.',
        queries: [{ expr: `topk(5, ${quantile(0.95, ', route')})`, legend: '{{route}}' }]
      },
      {
        title: 'Problems a second, by code',
        unit: 'reqps',
        about: 'The codes of problem documents.',
        queries: [{ expr: `topk(6, sum by (code) (${rate('aggios_problems_total')}))`, legend: '{{code}}' }]
      },
      {
        title: 'Sign-ins and renewals a second, by outcome',
        unit: 'reqps',
        about: 'Many invalid_credentials mean that somebody guesses passwords.',
        queries: [{ expr: `sum by (outcome) (${rate('aggios_sign_ins_total')})`, legend: '{{outcome}}' }]
      },
      {
        title: 'Share that missed an objective, over 5 minutes',
        unit: 'percentunit',
        about: 'Each objective has a budget over 30 days: docs/observability.md.',
        queries: [{ expr: 'aggios:slo_errors:ratio_rate5m', legend: '{{objective}}' }]
      },
      {
        title: 'Refused by limits a second',
        unit: 'reqps',
        about: 'Which limit refuses.',
        queries: [{ expr: `sum by (limit) (${rate('aggios_limit_refused_total')})`, legend: '{{limit}}' }]
      }
    ]
  },
  {
    uid: 'aggios-processes',
    title: 'Aggios: processes',
    panels: [
      {
        title: 'CPU, in cores',
        unit: 'short',
        about: 'With the threads beside the event loop.',
        queries: [{ expr: rate('process_cpu_seconds_total'), legend: '{{worker}}' }]
      },
      {
        title: 'Event loop at work',
        unit: 'percentunit',
        about: 'Near 100 % each request waits: add processes or replicas.',
        queries: [{ expr: rate('nodejs_eventloop_active_seconds_total'), legend: '{{worker}}' }]
      },
      {
        title: 'Delay of the event loop, p99',
        unit: 's',
        about: 'How late timers are.',
        queries: [{ expr: 'nodejs_eventloop_lag_seconds{percentile="99"}', legend: '{{worker}}' }]
      },
      {
        title: 'Memory',
        unit: 'bytes',
        about: 'What the kernel counts as resident.',
        queries: [{ expr: 'process_resident_memory_bytes', legend: '{{worker}}' }]
      },
      {
        title: 'Share of time in garbage collections',
        unit: 'percentunit',
        about: 'A steady rise with the memory means a leak.',
        queries: [{ expr: `sum by (worker) (${rate('nodejs_gc_duration_seconds_sum')})`, legend: '{{worker}}' }]
      },
      {
        title: 'Connections, and requests under way',
        unit: 'short',
        about: 'Of clients or of the proxy.',
        queries: [
          { expr: 'sum(http_connections)', legend: 'connections' },
          { expr: 'sum(http_requests_in_flight)', legend: 'requests' }
        ]
      },
      {
        title: 'File descriptors in use',
        unit: 'percentunit',
        about: 'Without a free one the process accepts nothing.',
        queries: [{ expr: 'process_open_fds / process_max_fds', legend: '{{worker}}' }]
      },
      {
        title: 'Processes, by version',
        unit: 'short',
        about: 'Two versions for long mean a deployment that stopped half way.',
        queries: [{ expr: 'count by (version, revision) (aggios_build_info)', legend: '{{version}} {{revision}}' }]
      }
    ]
  },
  {
    uid: 'aggios-work',
    title: 'Aggios: database and background work',
    panels: [
      {
        title: 'How long services take to answer',
        unit: 's',
        about: 'PostgreSQL, the store of files and Redis, when they are asked whether they are there.',
        queries: [{ expr: 'max by (dependency) (aggios_dependency_latency_seconds)', legend: '{{dependency}}' }]
      },
      {
        title: 'Connections to the database',
        unit: 'short',
        about: 'Queries that wait cost each request time.',
        queries: [
          { expr: 'sum by (state) (aggios_pool_connections)', legend: '{{state}}' },
          { expr: 'sum(aggios_pool_waiting)', legend: 'queries that wait' }
        ]
      },
      {
        title: 'Failed statements a second, by class',
        unit: 'reqps',
        about: 'Classes of SQLSTATE: AggiosDatabaseErrors in docs/observability.md.',
        queries: [
          { expr: `sum by (class) (${rate('aggios_database_errors_total')}) or vector(0)`, legend: '{{class}}' }
        ]
      },
      {
        title: 'Reads a second, by who answered',
        unit: 'reqps',
        about: 'Reads that may be answered from memory.',
        queries: [{ expr: `sum by (by) (${rate('aggios_remembered_reads_total')})`, legend: '{{by}}' }]
      },
      {
        title: 'Password hashes',
        unit: 'short',
        about: 'Those that wait delay sign-ins, and nothing else.',
        queries: [
          { expr: 'sum(aggios_password_hashes_running)', legend: 'running' },
          { expr: 'sum(aggios_password_hashes_waiting)', legend: 'waiting' }
        ]
      },
      {
        title: 'Mails',
        unit: 'short',
        about: 'Mails that are due grow when the mail server refuses them.',
        queries: [
          { expr: 'max(aggios_mails_due)', legend: 'due' },
          { expr: 'sum by (outcome) (aggios_mails_total)', legend: '{{outcome}}' }
        ]
      },
      {
        title: 'Requests to webhooks a second, by outcome',
        unit: 'reqps',
        about: 'One that failed is tried again for three days, and then given up.',
        queries: [{ expr: `sum by (outcome) (${rate('aggios_webhook_attempts_total')})`, legend: '{{outcome}}' }]
      },
      {
        title: 'Webhooks that wait, and streams of events',
        unit: 'short',
        about: 'Deliveries wait for endpoints that are slow or that fail. Streams are open in all processes together.',
        queries: [
          { expr: 'max(aggios_webhooks_waiting)', legend: 'deliveries that wait' },
          { expr: 'sum(aggios_webhooks_in_flight)', legend: 'requests to webhooks' },
          { expr: 'sum(aggios_event_streams)', legend: 'streams' }
        ]
      },
      {
        title: 'Since the last success of a job',
        unit: 's',
        about: 'The six that have waited longest. Each has its own pause.',
        queries: [
          {
            expr: 'topk(6, time() - max by (task) (aggios_job_last_success_timestamp_seconds > 0))',
            legend: '{{task}}'
          }
        ]
      },
      {
        title: 'How far behind',
        unit: 's',
        about:
          'Audit events without a seal, and what a process knows of sessions that ended. At 5 s of those it answers 503.',
        queries: [
          { expr: 'max(aggios_audit_unsealed_seconds)', legend: 'audit events' },
          { expr: 'max(aggios_revocation_lag_seconds)', legend: 'ended sessions' }
        ]
      }
    ]
  }
]

/** The file of a dashboard, as Grafana reads it: two panels a row. */
export function grafanaFile({ uid, title, panels }: Dashboard): string {
  const datasource = { type: 'prometheus', uid: 'prometheus' }
  const file = {
    ...{ uid, title, tags: ['aggios'], schemaVersion: 39, editable: false, refresh: '30s', timezone: 'browser' },
    time: { from: 'now-3h', to: 'now' },
    panels: panels.map(({ title, unit, about, queries }, index) => ({
      ...{ id: index + 1, type: 'timeseries', title, description: about, datasource },
      gridPos: { h: 8, w: 12, x: (index % 2) * 12, y: Math.floor(index / 2) * 8 },
      fieldConfig: { defaults: { unit, min: 0, custom: { fillOpacity: 10, showPoints: 'never' } }, overrides: [] },
      options: { legend: { displayMode: 'list', placement: 'bottom' }, tooltip: { mode: 'multi' } },
      targets: queries.map(({ expr, legend }, each) => ({
        ...{ refId: 'ABCDEF'[each], datasource, expr, legendFormat: legend, range: true }
      }))
    }))
  }
  return `${JSON.stringify(file, null, 2)}\n`
}

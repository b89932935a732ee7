import { isIP } from 'node:net'
import { type Static, Type } from '@sinclair/typebox'
import Fastify, { type FastifyInstance, LogController } from 'fastify'
import { v4 as randomUuid } from 'uuid'
import addresses from '../../plugins/http/addresses.ts'
import errors from '../../plugins/http/errors.ts'
import headers from '../../plugins/http/headers.ts'
import methods from '../../plugins/http/methods.ts'
import validation from '../../plugins/http/validation.ts'
import configPlugin from '../../plugins/infrastructure/config.ts'
import metrics from '../../plugins/observability/metrics.ts'
import { StringEnum } from '../../routes/schemas.ts'
import type { Config } from '../config/config.ts'
import { unavailable, unknownHost } from '../http/problems.ts'
import { type Family, render } from '../metrics.ts'
import { build } from '../observability/build.ts'
import { logging } from '../observability/log-format.ts'
import { createLogLevel, defaultSeconds, type LogLevel, levels, maxSeconds } from '../observability/log-level.ts'
import type { SecretFiles } from '../secrets/secret-files.ts'
import type { Processes } from './serving.ts'

const NewLogLevel = Type.Object(
  {
    level: StringEnum(levels),
    for: Type.Optional(Type.Integer({ minimum: 1, maximum: maxSeconds }))
  },
  { additionalProperties: false }
)

/** The listener, and the level of the log, which a signal changes too. */
export type InternalListener = FastifyInstance & { logLevel: LogLevel }

/**
 * Builds the operators' listener, which has an address of its own: Prometheus metrics at `/metrics`, and the state of
 * each process at `/health`, and what they log at `/log-level`. The primary process runs one listener for all workers.
 * `processes` returns undefined until a process serves. `secretFiles` are the files of secrets that are read again.
 */
export function buildInternal(
  config: Config,
  processes: () => Processes | undefined,
  secretFiles: () => SecretFiles | undefined = () => undefined
): InternalListener {
  const app = Fastify({
    ...logging(config),
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'request_id' }),
    genReqId: () => randomUuid(),
    requestTimeout: 10_000,
    forceCloseConnections: true
  })
  const logLevel = createLogLevel(app.log, config.logLevel, (level) => processes()?.setLogLevel(level))
  app.decorate('logLevel', logLevel)
  app.register(configPlugin, { config })
  app.register(addresses)
  app.register(metrics)
  app.register(errors)
  app.register(validation)
  app.register(methods)
  app.register(headers)

  // DNS rebinding: a foreign page can make a browser send requests here under a name that resolves to this address. It
  // can't make the browser send an IP address or a name without a dot as the host
  app.addHook('onRequest', (request, _reply, done) => {
    const name = request.hostname.toLowerCase()
    done(
      isIP(name.replace(/^\[|\]$/g, '')) || !name.includes('.') || name === config.metricsHost
        ? undefined
        : unknownHost()
    )
  })

  app.register(async (internal) => {
    const access = 'internal'

    internal.get('/metrics', { config: { access } }, async (_request, reply) => {
      const answers = (await processes()?.collect('metrics')) ?? []
      const each = answers.map(({ worker, report = [] }) => ({ worker, families: report }))
      const known = answers.map(({ worker, report }) => ({ worker, families: [workerUp(report !== undefined)] }))
      reply.type('text/plain; version=0.0.4; charset=utf-8')
      const worker = config.webConcurrency > 1 ? 'primary' : '1'
      const files = { worker, families: [refusedFiles(secretFiles()?.stats().refused ?? 0)] }
      return render([...known, ...each, files, ...(config.webConcurrency > 1 ? await primaryFamilies() : [])])
    })

    internal.get('/log-level', { config: { access } }, async () => logLevel.report())

    internal.put('/log-level', { config: { access }, schema: { body: NewLogLevel } }, async (request) => {
      const { level, for: seconds = defaultSeconds } = request.body as Static<typeof NewLogLevel>
      return logLevel.set(level, seconds, request.address ?? 'the internal listener')
    })

    internal.get('/health', { config: { access } }, async () => {
      const answers = (await processes()?.collect('health')) ?? []
      const workers = answers.map(({ worker, report }) => ({ worker, status: statusOf(report), ...report }))
      const serving = workers.filter(({ status }) => status === 'ok').length
      const report = {
        ...build,
        uptime_seconds: Math.round(process.uptime()),
        secret_files: describeFiles(secretFiles()),
        workers
      }
      if (serving === 0) throw unavailable({ headers: { 'retry-after': '1' }, extensions: report })
      const whole = workers.every(
        ({ status, checks, secrets, conditions = {} }) =>
          status === 'ok' &&
          secrets?.refused.length === 0 &&
          checks?.storage.status === 'ok' &&
          Object.values(conditions).every((condition) => condition.status === 'ok')
      )
      return { status: whole && report.secret_files.status === 'ok' ? 'ok' : 'degraded', ...report }
    })
  })

  async function primaryFamilies() {
    const restarts = processes()?.restarts() ?? []
    const families = await app.metrics.collect()
    return [
      // the primary's HTTP metrics would count the requests to this listener only
      { worker: 'primary', families: families.filter(({ name }) => !name.startsWith('http_')) },
      ...restarts.map(({ worker, count }) => ({ worker, families: [workerRestarts(count)] }))
    ]
  }
  return app as unknown as InternalListener
}

const workerUp = (up: boolean): Family => ({
  name: 'aggios_worker_up',
  help: 'Whether the process answered when it was asked for this page; nothing else of one that did not is on it',
  type: 'gauge',
  samples: [{ value: Number(up) }]
})

const workerRestarts = (count: number): Family => ({
  name: 'aggios_worker_restarts_total',
  help: 'How often the process was replaced',
  type: 'counter',
  samples: [{ value: count }]
})

const refusedFiles = (count: number): Family => ({
  name: 'aggios_secret_files_refused_total',
  help: 'How often files of secrets had changed and could not be used',
  type: 'counter',
  samples: [{ value: count }]
})

/** Says how many secrets come from files, and what is wrong with the files as they are. */
function describeFiles(files: SecretFiles | undefined) {
  const { files: count, problems } = files?.stats() ?? { files: 0, problems: [] }
  return { status: problems.length === 0 ? ('ok' as const) : ('refused' as const), files: count, problems }
}

function statusOf(
  report: { draining: boolean; checks: Record<string, { status: string }> } | undefined
): 'ok' | 'draining' | 'down' | 'silent' {
  if (!report) return 'silent'
  if (report.draining) return 'draining'
  return Object.values(report.checks).some(({ status }) => status === 'down') ? 'down' : 'ok'
}

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type Static, Type } from '@sinclair/typebox'
import { shuttingDown, unavailable } from '../../src/http/problems.ts'
import { StringEnum } from '../schemas.ts'

const Check = Type.Object({ status: StringEnum(['ok', 'down'], { examples: ['ok'] }) })
const Checks = Type.Object({ database: Check, storage: Check, redis: Type.Optional(Check) })
const Health = Type.Object(
  {
    status: StringEnum(['ok', 'degraded'], { examples: ['ok'] }),
    checks: Checks
  },
  { title: 'Health' }
)
const Liveness = Type.Object({ status: StringEnum(['ok'], { examples: ['ok'] }) }, { title: 'Liveness' })

const retry = { 'retry-after': '1' }

/** Health checks, on every host. A 503 is a problem document with `checks`. */
const health: FastifyPluginAsyncTypebox = async (app) => {
  const config = { access: 'public', host: 'any', limited: false } as const
  const tags = ['health']

  async function check() {
    const report = await app.health.report()
    const statuses = Object.entries(report).map(([name, { status }]) => [name, { status }])
    const checks = Object.fromEntries(statuses) as Static<typeof Checks>
    if (report.database.status === 'down') throw unavailable({ headers: retry, extensions: { checks } })
    const whole = Object.values(report).every(({ status }) => status === 'ok')
    return { status: whole ? ('ok' as const) : ('degraded' as const), checks }
  }

  app.get(
    '',
    {
      config,
      schema: {
        operationId: 'getHealth',
        summary: 'Health of the service',
        description:
          '200 while the API can serve, with `degraded` when it serves without Redis or the store; else 503 with the failed checks.',
        tags,
        response: { 200: Health }
      }
    },
    check
  )

  app.get(
    '/live',
    {
      config,
      schema: {
        operationId: 'getLiveness',
        summary: 'Whether the process runs',
        description: 'Does not check the database: a process that answers needs no restart.',
        tags,
        response: { 200: Liveness }
      }
    },
    async () => ({ status: 'ok' as const })
  )

  app.get(
    '/ready',
    {
      config: { ...config, problems: ['shutting_down'] },
      schema: {
        operationId: 'getReadiness',
        summary: 'Whether to send requests here',
        description: 'For load balancers: 503 when the API cannot serve or the process is shutting down.',
        tags,
        response: { 200: Health }
      }
    },
    async () => {
      if (app.health.draining) throw shuttingDown({ headers: retry })
      return check()
    }
  )
}

export default health

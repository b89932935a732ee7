import { Readable } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyRequest } from 'fastify'
import { maxUuid } from '../../src/uuids.ts'
import { type AuditLine, type AuditRow, auditEventsBy, auditLinesBy } from './queries.ts'
import {
  AuditEventPage,
  type AuditFilters,
  AuditQuery,
  AuditVerification,
  AuditFilters as Filters,
  VerificationQuery
} from './schemas.ts'
import { createVerification } from './verification.ts'

/** Rows that the export reads at a time. */
const exportBatch = 1000

/** The audit log of an agency: who did what. */
const auditEvents: FastifyPluginAsyncTypebox = async (app) => {
  const verify = createVerification(app)
  const access = 'admin'
  const tags = ['audit']

  app.get(
    '',
    {
      config: { access, permission: 'audit:read', problems: ['invalid_cursor'] },
      schema: {
        operationId: 'listAuditEvents',
        summary: 'Who did what',
        description: 'The newest first. A cursor belongs to the filters with which it was given.',
        tags,
        querystring: AuditQuery,
        response: { 200: AuditEventPage }
      }
    },
    async (request, reply) => {
      const { limit = 25, cursor, ...filters } = request.query
      const scope = `audit ${request.user.tenant_id} ${JSON.stringify(filtersOf(filters))}`
      const [after_at = start.after_at, after_id = start.after_id] = app.cursors.require(scope, cursor)
      const values = valuesOf(request, filters, { after_at, after_id }, limit + 1)
      const rows = await request.tenantQuery(auditEventsBy(values), values)
      reply.header('cache-control', 'private, no-cache')
      const { data, next_cursor } = app.cursors.page(scope, rows, limit, ({ at, id }) => [at, id])
      return { data: data.map(toEvent), next_cursor }
    }
  )

  app.get(
    '/export',
    {
      config: { access, permission: 'audit:read', throttled: true },
      schema: {
        operationId: 'exportAuditEvents',
        summary: 'Every event, one JSON document per line',
        description: 'The newest first, streamed. Each line is an event as in the list.',
        tags,
        querystring: Filters,
        response: {
          200: {
            description: 'NDJSON',
            content: { 'application/x-ndjson': { schema: Type.String({ examples: ['{"id":"…","action":"…"}\n'] }) } }
          }
        }
      }
    },
    async (request, reply) => {
      // the first rows are read before the reply begins, so that a failure gives a problem document instead of a
      // truncated file
      const first = request.method === 'HEAD' ? [] : await readLines(request, request.query, start)
      reply
        .type('application/x-ndjson; charset=utf-8')
        .header('content-disposition', 'attachment; filename="audit-events.ndjson"')
      return Readable.from(lines(request, request.query, first), {
        objectMode: false,
        highWaterMark: 64 * 1024
      }) as never
    }
  )

  app.get(
    '/verify',
    {
      config: { access, permission: 'audit:read', throttled: 3, problems: ['invalid_cursor'] },
      schema: {
        operationId: 'verifyAuditEvents',
        summary: 'Whether the log is as it was written',
        description:
          'Events are sealed about a minute after they were written: hashed, and chained segment by segment. The reply names the first event that was changed, removed or added since then. A long log is checked in parts: while `next_cursor` is not null, `intact` covers the part checked so far, and the next request with `cursor` continues the check.',
        tags,
        querystring: VerificationQuery,
        response: { 200: AuditVerification }
      }
    },
    async (request, reply) => {
      // HEAD would check the log only to compute a length
      if (request.method === 'HEAD') {
        reply.type('application/json; charset=utf-8')
        return Readable.from([]) as never
      }
      return verify(request, request.query.cursor)
    }
  )

  /**
   * Streams the lines page by page, without an open transaction: memory stays flat, and a slow client holds no
   * connection.
   */
  async function* lines(request: FastifyRequest, filters: AuditFilters, first: AuditLine[]) {
    for (let rows = first; rows.length > 0; ) {
      yield rows.map(({ line }) => `${line}\n`).join('')
      const last = rows.at(-1)
      if (!last || rows.length < exportBatch) return
      rows = await readLines(request, filters, { after_at: last.at, after_id: last.id })
    }
  }

  function readLines(request: FastifyRequest, filters: AuditFilters, position: Position): Promise<AuditLine[]> {
    const values = valuesOf(request, filters, position, exportBatch)
    return request.tenantQuery(auditLinesBy(values), values)
  }
}

type Position = { after_at: string; after_id: string }
/** The position before the newest event. */
const start: Position = { after_at: 'infinity', after_id: maxUuid }

function valuesOf(request: FastifyRequest, filters: AuditFilters, position: Position, limit: number) {
  const { action, actor_id, from, to } = filtersOf(filters)
  const times = { from: from ?? '-infinity', to: to ?? 'infinity' }
  return { tenant_id: request.user.tenant_id, action, actor_id, ...times, ...position, limit }
}

function filtersOf({ action, actor_id, from, to }: AuditFilters) {
  return { action: action ?? null, actor_id: actor_id ?? null, from: from ?? null, to: to ?? null }
}

/** The event without its position. */
function toEvent({ at: _, ...event }: AuditRow) {
  return event
}

export default auditEvents

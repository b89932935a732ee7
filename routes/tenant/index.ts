import { Readable } from 'node:stream'
import { isDeepStrictEqual } from 'node:util'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { queryIn } from '../../db/gate/gate.ts'
import type { TenantSettings } from '../../db/gate/tables.ts'
import { queueAgencyNews } from '../../db/queries/accounts/mails.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { transferOwnership } from '../../db/queries/member-acts.ts'
import { lockRoles } from '../../db/queries/members.ts'
import { isFresh } from '../../db/queries/sessions.ts'
import { hasFactor } from '../../db/queries/sign-in/second-factors.ts'
import { setTenantStatus } from '../../db/queries/tenant-status.ts'
import { readTenant } from '../../db/queries/tenants.ts'
import { roleTooLow } from '../../src/auth/admission.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { matchesTag, tenantTag, tenantVersion } from '../../src/http/etags.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { conflict, forbidden, notFound, preconditionFailed, reauthenticationRequired } from '../../src/http/problems.ts'
import { requireDone } from '../../src/tenancy/member-outcomes.ts'
import { normalizeSlug } from '../../src/tenancy/slugs.ts'
import { Accepted, NoContent, NotModified, presentTenant, ReadConditions, Tenant, WriteConditions } from '../schemas.ts'
import { exportLines } from './export.ts'
import { lockTenant, updateTenant } from './queries.ts'
import { Deletion, TenantPatch, Transfer } from './schemas.ts'

/** The agency of the access token. */
const tenant: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['tenant']

  app.get(
    '',
    {
      config: { access: 'viewer', permission: 'tenant:read' },
      schema: {
        operationId: 'getTenant',
        summary: 'The agency',
        description:
          'The agency of the access token. `If-None-Match` saves the body. May miss changes of the last second by another process, but not one whose ETag is sent as `If-None-Match`; `Cache-Control: no-cache` gets the newest.',
        tags,
        headers: ReadConditions,
        response: { 200: Tenant, 304: NotModified }
      }
    },
    async (request, reply) => {
      const [row] = await request.tenantQuery(readTenant, request.user)
      if (!row) throw notFound()
      const tag = tenantTag(row)
      reply.header('etag', tag).header('cache-control', 'private, no-cache')
      const known = request.headers['if-none-match']
      if (known !== undefined && matchesTag(known, tag)) {
        reply.code(304)
        return
      }
      return presentTenant(row, await app.storageQuota(row.id))
    }
  )

  app.patch(
    '',
    {
      config: {
        access: 'admin',
        permission: 'tenant:write',
        problems: ['precondition_failed', 'conflict', 'reauthentication_required']
      },
      schema: {
        operationId: 'updateTenant',
        summary: 'Change the agency',
        description:
          'JSON merge patch, also for `settings`. `If-Match` refuses the change when the agency has changed since it was read. A change of `mfa_required_from` needs a sign-in within the last five minutes, and setting it a second factor of your own: `conflict`. All members get a mail about it, so an agency may set it and demand a provider ten times a day in all: `rate_limited`. Ending it is not limited.',
        tags,
        headers: WriteConditions,
        body: TenantPatch,
        response: { 200: Tenant }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const condition = request.headers['if-match']
      const patch = withUtcDemand(request.body)
      // whoever may set these can let themselves in, and a key must leave no way in behind it
      const isReserved =
        patch.settings && ('allowed_origins' in patch.settings || 'mfa_required_from' in patch.settings)
      if (request.user.key && isReserved) throw forbidden({ detail: 'no API key may do this' })
      const outcome = await request.withTenant(async (trx) => {
        const before = await lockTenant(trx, tenant_id)
        if (!before) return 'gone'
        if (condition !== undefined && !matchesVersion(condition, before)) return 'changed'
        const after = merge(before, patch)
        const demand = after.settings.mfa_required_from
        if (demand !== before.settings.mfa_required_from) {
          if (!(await isFresh(trx, request.user))) return 'stale'
          // so that nobody locks themselves out, and everybody else with them
          if (demand !== undefined && !(await hasFactor(trx, request.user.user_id))) return 'unenrolled'
          if (demand !== undefined) await app.attempts.countDemand(request, reply)
        }
        const change = { before: { name: before.name, settings: before.settings }, after }
        if (!isDeepStrictEqual(change.before, change.after)) {
          await updateTenant(trx, tenant_id, after)
          await recordAudit(trx, { action: 'tenant.updated', target_id: tenant_id, detail: change })
        }
        if (demand !== before.settings.mfa_required_from) {
          const kind = demand === undefined ? 'factor_demand_ended' : 'factor_demanded'
          await queueAgencyNews(trx, kind, demand === undefined ? {} : { from: demand })
        }
        const [row] = await queryIn(trx, readTenant, request.user)
        return row ?? 'gone'
      })
      if (outcome === 'gone') throw notFound()
      if (outcome === 'changed') throw preconditionFailed()
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'unenrolled') throw conflict({ detail: 'set up a second factor of your own first' })
      app.mail.wake()
      await app.revocations.readNow()
      reply.header('etag', tenantTag(outcome)).header('cache-control', 'private, no-cache')
      return presentTenant(outcome, await app.storageQuota(outcome.id))
    }
  )

  app.get(
    '/export',
    {
      config: { access: 'owner', permission: 'never', throttled: true },
      schema: {
        operationId: 'exportTenant',
        summary: 'Everything of the agency, one JSON document per line',
        description:
          'Each line is `{"table": …, "row": …}`. Streamed, without the secrets of sessions and invitations.',
        tags,
        response: {
          200: {
            description: 'NDJSON',
            content: {
              'application/x-ndjson': { schema: Type.String({ examples: ['{"table":"tenant","row":{}}\n'] }) }
            }
          }
        }
      }
    },
    async (request, reply) => {
      const asFile = () =>
        reply
          .type('application/x-ndjson; charset=utf-8')
          .header('content-disposition', 'attachment; filename="agency.ndjson"')
      if (request.method === 'HEAD') {
        asFile()
        return Readable.from([]) as never
      }
      // the first lines are read before the reply begins, so that a failure gives a problem document instead of a
      // truncated file
      const lines = exportLines(request)
      const first = await lines.next()
      await request.withTenant((trx) =>
        recordAudit(trx, { action: 'tenant.exported', target_id: request.user.tenant_id })
      )
      asFile()
      return Readable.from(prepend(first, lines), { objectMode: false, highWaterMark: 64 * 1024 }) as never
    }
  )

  app.delete(
    '',
    {
      config: { access: 'owner', permission: 'never', problems: ['reauthentication_required'] },
      schema: {
        operationId: 'deleteTenant',
        summary: 'Delete the agency',
        description:
          'Suspends the agency at once and purges it later. The slug in the body confirms the deletion. Needs a sign-in within the last five minutes.',
        tags,
        body: Deletion,
        response: { 202: Accepted }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const outcome = await request.withTenant(async (trx) => {
        const tenant = await lockTenant(trx, tenant_id)
        if (tenant?.slug !== normalizeSlug(request.body.slug)) return 'unconfirmed'
        if (!(await isFresh(trx, request.user))) return 'stale'
        const roles = await lockRoles(trx, [request.user.user_id])
        if (roles.find(({ user_id }) => user_id === request.user.user_id)?.role !== 'owner') return 'demoted'
        const [tokenSeconds, purgeAfter] = [revocationSeconds(app.config), app.config.tenantPurgeAfter]
        await setTenantStatus(trx, tenant_id, {
          status: 'suspended',
          action: 'tenant.deleted',
          tokenSeconds,
          purgeAfter
        })
        return 'deleted'
      })
      if (outcome === 'unconfirmed') {
        throw invalidMembers([{ path: '/body/slug', message: "must be this agency's slug" }])
      }
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'demoted') throw roleTooLow('owner')
      await app.revocations.readNow()
      reply.code(202)
      return { status: 'accepted' as const }
    }
  )

  app.post(
    '/transfer',
    {
      config: {
        access: 'owner',
        permission: 'never',
        problems: ['not_found', 'last_break_glass_owner', 'reauthentication_required']
      },
      schema: {
        operationId: 'transferTenant',
        summary: 'Hand the agency over',
        description:
          'The member becomes an owner and the caller becomes an admin, in one step. Needs a sign-in within the last five minutes.',
        tags,
        body: Transfer,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const act = {
        actor_id: request.user.user_id,
        user_id: request.body.user_id,
        token_seconds: revocationSeconds(app.config)
      }
      const outcome = await request.withTenant(async (trx) =>
        (await isFresh(trx, request.user)) ? transferOwnership(trx, act) : 'stale'
      )
      if (outcome === 'stale') throw reauthenticationRequired()
      requireDone(outcome)
      await app.revocations.readNow()
      reply.code(204)
    }
  )
}

/** Yields the value that was read already, then the rest. */
async function* prepend(first: IteratorResult<string>, rest: AsyncGenerator<string>) {
  if (!first.done) yield first.value
  yield* rest
}

/**
 * Writes the moment from which a second factor is demanded in UTC, as the database compares it. Throws
 * `validation_failed` for a leap second, and for a moment whose year in UTC has no four digits.
 */
function withUtcDemand(patch: TenantPatch): TenantPatch {
  const given = patch.settings?.mfa_required_from
  if (typeof given !== 'string') return patch
  const moment = new Date(given)
  const text = Number.isNaN(moment.getTime()) ? '' : moment.toISOString()
  if (!/^\d{4}-/.test(text)) {
    throw invalidMembers([{ path: '/body/settings/mfa_required_from', message: 'must be a moment of RFC 3339' }])
  }
  return { ...patch, settings: { ...patch.settings, mfa_required_from: text } }
}

/** Applies a JSON merge patch (RFC 7396), also inside `settings`: absent members stay, null removes a member. */
function merge(before: { name: string; settings: TenantSettings }, patch: TenantPatch) {
  const settings: Record<string, unknown> = { ...before.settings, ...patch.settings }
  for (const [key, value] of Object.entries(settings)) if (value === null) delete settings[key]
  return { name: patch.name ?? before.name, settings: settings as TenantSettings }
}

/**
 * Compares If-Match without the counts of members and bytes: a new member changes the ETag but must not block a change
 * of the name.
 */
function matchesVersion(condition: string, row: { id: string; version: number }): boolean {
  const withoutCounts = condition.replaceAll(/"(\d+-[0-9a-f]{12})-\d+-\d+"/g, '"$1"')
  return matchesTag(withoutCounts, `"${tenantVersion(row)}"`)
}

export default tenant

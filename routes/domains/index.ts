import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { recordAudit } from '../../db/queries/audit.ts'
import { isFresh } from '../../db/queries/sessions.ts'
import { confirmDomain, type Domain as DomainRow } from '../../db/queries/sign-in/domains.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { conflict, domainNotProven, notFound, reauthenticationRequired } from '../../src/http/problems.ts'
import { domainFault, domainRecord, normalizeDomain } from '../../src/tenancy/domain-names.ts'
import { NoContent, PageQuery } from '../schemas.ts'
import { deleteDomain, insertDomain, listDomains, maxDomains, readDomain } from './queries.ts'
import { Domain, DomainInput, DomainPage, DomainParams } from './schemas.ts'

/** The domains that an agency has proven to be its own, by a record of DNS. */
const domains: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['tenant']
  const access = 'owner'

  app.get(
    '',
    {
      config: { access, permission: 'never', problems: ['invalid_cursor'] },
      schema: {
        operationId: 'listDomains',
        summary: 'The domains of the agency',
        description: 'By name, those that are not proven yet too.',
        tags,
        querystring: PageQuery,
        response: { 200: DomainPage }
      }
    },
    async (request, reply) => {
      const { limit = 25, cursor } = request.query
      const { tenant_id } = request.user
      const scope = `domains ${tenant_id}`
      const [after = ''] = app.cursors.require(scope, cursor)
      const rows = await request.tenantQuery(listDomains, { tenant_id, after, limit: limit + 1 })
      reply.header('cache-control', 'private, no-cache')
      const page = app.cursors.page(scope, rows, limit, ({ name }) => [name])
      return { ...page, data: page.data.map(present) }
    }
  )

  app.post(
    '',
    {
      config: { access, permission: 'never', throttled: true, problems: ['conflict', 'reauthentication_required'] },
      schema: {
        operationId: 'addDomain',
        summary: 'Add a domain',
        description: `It counts when the record of the reply is in DNS and was verified. Other agencies may add the same domain, and none learns of it. A proof holds for exactly this name, not for names under it. An agency has at most ${maxDomains} domains. Needs a sign-in within the last five minutes.`,
        tags,
        body: DomainInput,
        response: { 201: Domain }
      }
    },
    async (request, reply) => {
      const name = normalizeDomain(request.body.name)
      const fault =
        name === undefined ? 'must be a domain such as acme.example' : domainFault(name, app.config.baseDomain)
      if (name === undefined || fault) {
        throw invalidMembers([{ path: '/body/name', message: fault ?? '' }])
      }
      const outcome = await request.withTenant(async (trx) => {
        if (!(await isFresh(trx, request.user))) return 'stale'
        const added = await insertDomain(trx, request.user.tenant_id, name)
        if (typeof added !== 'string') await recordAudit(trx, { action: 'domain.added', detail: { name } })
        return added
      })
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'known') throw conflict({ detail: 'the agency has this domain already' })
      if (outcome === 'full') throw conflict({ detail: `an agency has at most ${maxDomains} domains` })
      reply.code(201)
      return present(outcome)
    }
  )

  app.get(
    '/:name',
    {
      config: { access, permission: 'never', problems: ['not_found'] },
      schema: {
        operationId: 'getDomain',
        summary: 'One domain of the agency',
        description: 'With the record that proves it.',
        tags,
        params: DomainParams,
        response: { 200: Domain }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const [row] = await request.tenantQuery(readDomain, { tenant_id, name: requireName(request.params.name) })
      if (!row) throw notFound()
      reply.header('cache-control', 'private, no-cache')
      return present(row)
    }
  )

  app.post(
    '/:name/verify',
    {
      config: { access, permission: 'never', throttled: true, problems: ['not_found', 'domain_not_proven'] },
      schema: {
        operationId: 'verifyDomain',
        summary: 'Look for the record of a domain now',
        description:
          'Answers within five seconds. Otherwise a proven domain is looked up once a day, and a domain that is not proven never. `reason` of `domain_not_proven` is `no_name`, `no_record` or `other_records`, or, when nothing could be learned, `server_failure` or `timeout`. A domain that is proven stays so.',
        tags,
        params: DomainParams,
        response: { 200: Domain }
      }
    },
    async (request) => {
      const { tenant_id } = request.user
      const [row] = await request.tenantQuery(readDomain, { tenant_id, name: requireName(request.params.name) })
      if (!row) throw notFound()
      const record = domainRecord(row.name, row.challenge)
      const found = await app.dns.findTexts(record.name)
      if (found.outcome !== 'found') throw unproven(found.outcome, record.name)
      if (!found.texts.includes(record.value)) throw unproven('other_records', record.name)
      const confirmed = await request.withTenant(async (trx) => {
        const domain = await confirmDomain(trx, row)
        if (domain && domain.before === null) {
          await recordAudit(trx, { action: 'domain.verified', detail: { name: domain.name } })
        }
        return domain
      })
      if (!confirmed) throw notFound()
      return present(confirmed)
    }
  )

  app.delete(
    '/:name',
    {
      config: { access, permission: 'never', problems: ['not_found', 'reauthentication_required'] },
      schema: {
        operationId: 'removeDomain',
        summary: 'Remove a domain',
        description:
          'Nobody is taken in by it any more, and nobody who is in is signed out. A domain that is added again gets another record. Needs a sign-in within the last five minutes.',
        tags,
        params: DomainParams,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const name = requireName(request.params.name)
      const outcome = await request.withTenant(async (trx) => {
        if (!(await isFresh(trx, request.user))) return 'stale'
        if (!(await deleteDomain(trx, name))) return 'gone'
        await recordAudit(trx, { action: 'domain.removed', detail: { name } })
        return 'removed'
      })
      if (outcome === 'stale') throw reauthenticationRequired()
      if (outcome === 'gone') throw notFound()
      reply.code(204)
    }
  )
}

/** Throws `not_found` for a text that can't be the name of a domain. */
function requireName(text: string): string {
  const name = normalizeDomain(text)
  if (name === undefined) throw notFound()
  return name
}

const reasons = {
  no_name: (name: string) => `DNS knows no name ${name}`,
  no_record: (name: string) => `${name} has no TXT record`,
  other_records: (name: string) => `none of the TXT records of ${name} has the value that this agency needs`,
  server_failure: (name: string) => `the name servers of ${name} answered with a failure: try again later`,
  timeout: (name: string) => `the name servers of ${name} did not answer in time: try again later`
}

function unproven(reason: keyof typeof reasons, name: string) {
  return domainNotProven({ detail: reasons[reason](name), extensions: { reason } })
}

function present({ name, challenge, created_at, verified_at, checked_at, failures }: DomainRow): Domain {
  const status = verified_at === null ? 'pending' : failures > 0 ? 'failing' : 'verified'
  return { name, status, record: domainRecord(name, challenge), created_at, verified_at, checked_at }
}

export default domains

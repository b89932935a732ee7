import type { FastifyRequest } from 'fastify'
import { sql } from 'kysely'
import { type Statement, statement } from '../../db/gate/statement.ts'
import { nilUuid } from '../../src/uuids.ts'

type Line = { position: string; line: string }
type Position = { tenant_id: string; after: string; limit: number }

/** Rows that the export reads at a time. */
const batch = 1000

/** One statement per table, ordered by id. PostgreSQL makes the text of each line. */
const parts = [
  statement(
    'export_tenant',
    (_, $: Position) => sql<Line>`
    select id::text as position, jsonb_build_object('table', 'tenant', 'row', to_jsonb(t) - 'version' - 'purge_at')::text as line
    from tenants t where id = ${$.tenant_id} and id > ${$.after} limit ${$.limit}`,
    { slow: true, replica: true }
  ),
  statement(
    'export_members',
    (_, $: Position) => sql<Line>`
    select m.user_id::text as position, jsonb_build_object('table', 'member', 'row', jsonb_build_object(
      'user_id', m.user_id, 'email', u.email, 'name', u.name, 'role', m.role, 'joined_at', m.joined_at))::text as line
    from memberships m join users u on u.id = m.user_id
    where m.tenant_id = ${$.tenant_id} and m.user_id > ${$.after}
    order by m.user_id limit ${$.limit}`,
    { slow: true, replica: true }
  ),
  statement(
    'export_sessions',
    (_, $: Position) => sql<Line>`
    select id::text as position, jsonb_build_object('table', 'session', 'row', jsonb_build_object('id', id, 'user_id', user_id,
      'ip', host(ip), 'user_agent', user_agent, 'created_at', created_at, 'last_used_at', rotated_at,
      'expires_at', expires_at, 'revoked_at', revoked_at))::text as line
    from sessions where tenant_id = ${$.tenant_id} and id > ${$.after}
    order by id limit ${$.limit}`,
    { slow: true, replica: true }
  ),
  statement(
    'export_invitations',
    (_, $: Position) => sql<Line>`
    select id::text as position, jsonb_build_object('table', 'invitation', 'row', to_jsonb(i) - 'generation')::text as line
    from invitations i where tenant_id = ${$.tenant_id} and id > ${$.after}
    order by id limit ${$.limit}`,
    { slow: true, replica: true }
  ),
  // without the digests of the secrets
  statement(
    'export_api_keys',
    (_, $: Position) => sql<Line>`
    select id::text as position, jsonb_build_object('table', 'api_key', 'row', jsonb_build_object('id', id, 'name', name,
      'role', role, 'permissions', permissions, 'cidrs', cidrs, 'created_by', created_by, 'created_at', created_at,
      'expires_at', expires_at, 'last_used_at', last_used_at))::text as line
    from api_keys where tenant_id = ${$.tenant_id} and id > ${$.after}
    order by id limit ${$.limit}`,
    { slow: true, replica: true }
  ),
  // without the bytes, which clients download file by file; `sha256` lets them check each download
  statement(
    'export_files',
    (_, $: Position) => sql<Line>`
    select id::text as position, jsonb_build_object('table', 'file', 'row', jsonb_build_object('id', id, 'name', name,
      'purpose', purpose, 'content_type', content_type, 'size', size, 'sha256', encode(sha256, 'hex'), 'created_by', created_by,
      'created_at', created_at, 'status', status))::text as line
    from files where tenant_id = ${$.tenant_id} and status in ('ready', 'deleted')
      and id > ${$.after}
    order by id limit ${$.limit}`,
    { slow: true }
  ),
  // without the secrets, which are of no use elsewhere
  statement(
    'export_webhooks',
    (_, $: Position) => sql<Line>`
    select id::text as position, jsonb_build_object('table', 'webhook', 'row', jsonb_build_object('id', id, 'url', url,
      'description', description, 'event_types', event_types, 'status', status, 'created_by', created_by,
      'created_at', created_at))::text as line
    from webhook_endpoints where tenant_id = ${$.tenant_id} and deleted_at is null and id > ${$.after}
    order by id limit ${$.limit}`,
    { slow: true, replica: true }
  )
]

const domains = statement(
  'export_domains',
  (_, $: Position) => sql<Line>`
  select name as position, jsonb_build_object('table', 'domain', 'row', jsonb_build_object('name', name,
    'created_at', created_at, 'verified_at', verified_at, 'checked_at', checked_at))::text as line
  from tenant_domains where tenant_id = ${$.tenant_id} and name > ${$.after}
  order by name limit ${$.limit}`,
  { slow: true, replica: true }
)

const auditEvents = statement(
  'export_tenant_audit_events',
  (_, $: Position) => sql<Line>`
  select to_char(created_at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || ' ' || id::text as position,
    jsonb_build_object('table', 'audit_event', 'row', to_jsonb(a))::text as line
  from audit_events a
  where tenant_id = ${$.tenant_id}
    and (created_at, id) > (split_part(${$.after}, ' ', 1)::timestamptz, split_part(${$.after}, ' ', 2)::uuid)
  order by created_at, id limit ${$.limit}`,
  { slow: true, replica: true }
)

/** Generates all lines of the tenant's data, page by page, so that memory stays flat for any amount of data. */
export async function* exportLines(request: FastifyRequest): AsyncGenerator<string> {
  for (const part of parts) yield* linesOf(request, part, nilUuid)
  yield* linesOf(request, domains, '')
  yield* linesOf(request, auditEvents, `-infinity ${nilUuid}`)
}

async function* linesOf(request: FastifyRequest, part: Statement<Position, Line>, from: string) {
  const { tenant_id } = request.user
  for (let after: string | undefined = from; after !== undefined; ) {
    const rows: Line[] = await request.tenantQuery(part, { tenant_id, after, limit: batch })
    if (rows.length > 0) yield rows.map(({ line }) => `${line}\n`).join('')
    after = rows.length === batch ? rows.at(-1)?.position : undefined
  }
}

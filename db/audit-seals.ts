import { sql } from 'kysely'
import { statement } from './statement.ts'

/** Seals what is older than an age, in all tenants. Resolves to the new heads of their chains. */
export const sealAudit = statement(
  'seal_audit',
  (_, $: { age_seconds: number }) => sql<{ tenant_id: string; seq: number; events: number; digest: string }>`
  select tenant_id, seq, events, encode(digest, 'hex') as digest from seal_audit(make_interval(secs => ${$.age_seconds}))`,
  { writes: true }
)

export const dropAuditPartitions = statement(
  'drop_audit_partitions',
  (_, $: { keep_days: number }) => sql<{ dropped: number }>`
  select drop_audit_partitions(make_interval(days => ${$.keep_days})) as dropped`,
  { writes: true }
)

export type SealCheck = {
  seq: number
  events: number
  /** The digest fits the hashes and the segment before. */
  chained: boolean
  digest: string
  broken_id: string | null
  broken_reason: 'changed' | 'removed' | 'added' | null
}

/**
 * One segment of the gate's tenant, held against the rows that are there now; `after` is the number of the one before. The
 * first row that does not fit is named. Segments that begin before the oldest month that is kept are not looked at.
 */
export const checkNextSeal = statement(
  'check_next_seal',
  (_, $: { tenant_id: string; after: number }) => sql<SealCheck>`
  with seal as materialized (
    select * from audit_seals where tenant_id = ${$.tenant_id} and seq > ${$.after}
      and from_at >= audit_kept_from()
    order by seq limit 1
  ), sealed as (
    select k.id, k.hash, k.place from seal, unnest(seal.ids, seal.hashes) with ordinality as k (id, hash, place)
  ), present as (
    select e.id, audit_hash(e) as hash, e.created_at
    from audit_events e, seal where e.tenant_id = ${$.tenant_id} and e.created_at > seal.from_at and e.created_at <= seal.to_at
  ), broken as (
    select coalesce(sealed.id, present.id) as id,
      case when present.id is null then 'removed' when sealed.id is null then 'added' else 'changed' end as reason
    from sealed full join present on present.id = sealed.id
    where sealed.hash is distinct from present.hash
    order by sealed.place nulls last, present.created_at limit 1
  )
  select seal.seq, cardinality(seal.ids) as events, encode(seal.digest, 'hex') as digest,
    seal.digest = sha256(coalesce(
      (select s.digest from audit_seals s where s.tenant_id = ${$.tenant_id} and s.seq = seal.seq - 1), ''
    ) || (select string_agg(hash, '' order by place) from sealed)) as chained,
    broken.id as broken_id, broken.reason as broken_reason
  from seal left join broken on true`,
  { slow: true, replica: true }
)

import { sql } from 'kysely'
import type { AuditKeys, Signature } from '../../src/auth/audit-keys.ts'
import { statement } from '../gate/statement.ts'

/*
 * What was sealed of the audit log, and whether it is as it was written.
 */

/** The newest segment of an agency's chain. Times have their microseconds, digests are in hexadecimal. */
export type Head = { tenant_id: string; seq: number; digest: string; bounds: string | null; to_at: string }

/** What is signed of a head. It covers all segments before, each of whose digests goes into the next. */
export const factsOf = ({ tenant_id, seq, digest, bounds, to_at }: Head) => [
  'head',
  tenant_id,
  seq,
  digest,
  bounds,
  to_at
]

export type Statement = { kind: 'signed_from' | 'dropped_to'; at: string; keep_days: number }
export const factsOfStatement = ({ kind, at, keep_days }: Statement) => ['statement', kind, at, keep_days]

export type AuditState = {
  sealed_to: string
  dropped_to: string
  keep_days: number
  /** Months before are over by the owner's row. */
  due_to: string | null
  statements: (Statement & Signature)[] | null
  ticket_number: string
  ticket_hash: Buffer | null
}

export const readAuditState = statement(
  'audit_state',
  (_, __: Record<never, never>) => sql<AuditState>`
  select sealed_to, dropped_to, keep_days, due_to, statements, ticket_number::text as ticket_number, ticket_hash
  from audit_state()`,
  { replica: true }
)

/** Times in one spelling, so they are compared as text; '-infinity' comes before all others. */
const laterOf = (one: string, other: string) => (one > other ? one : other)

/**
 * What the signed statements say of the whole log. `signed_from`: every segment that ends later is covered by a signature; null
 * when nothing was signed yet. `kept_from`: events before were dropped by the retention.
 */
export function readStatements(keys: AuditKeys, { statements }: Pick<AuditState, 'statements'>) {
  const good = (statements ?? []).filter((each) => keys.verify(factsOfStatement(each), [each]))
  const times = (kind: Statement['kind']) => good.flatMap((each) => (each.kind === kind ? each.at : [])).sort()
  return {
    signed_from: times('signed_from')[0] ?? null,
    kept_from: times('dropped_to').reduce(laterOf, '-infinity')
  }
}

export type SealCheck = {
  seq: number
  events: number
  /** The digest fits the hashes and the segment before, and the bounds fit too. */
  chained: boolean
  digest: string
  /** Of the segment before; null where that is not there. */
  last_digest: string | null
  broken_id: string | null
  broken_reason: 'changed' | 'removed' | 'added' | null
}

/**
 * One segment of the gate's tenant, held against the rows that are there now; `after` is the number of the one before. The
 * first row that does not fit is named. A segment answers for all since the end of the one before, so that nothing can be put
 * between two. Segments that begin before `kept_from` are not looked at; those that end after `signed_from` have signed bounds.
 */
export const checkNextSeal = statement(
  'check_next_seal',
  (_, $: { tenant_id: string; after: number; kept_from: string; signed_from: string }) => sql<SealCheck>`
  with seal as materialized (
    select s.*, last.seq as last_seq, last.digest as last_digest, last.bounds as last_bounds, last.to_at as last_to
    from audit_seals s left join audit_seals last on last.tenant_id = s.tenant_id and last.seq = s.seq - 1
    where s.tenant_id = ${$.tenant_id} and s.seq > ${$.after} and s.from_at >= ${$.kept_from}::timestamptz
    order by s.seq limit 1
  ), sealed as (
    select k.id, k.hash, k.place from seal, unnest(seal.ids, seal.hashes) with ordinality as k (id, hash, place)
  ), present as (
    select e.id, audit_hash(e) as hash, e.created_at
    from audit_events e, seal where e.tenant_id = ${$.tenant_id} and e.created_at <= seal.to_at
      and e.created_at > coalesce(seal.last_to, '-infinity') and e.created_at >= ${$.kept_from}::timestamptz
  ), broken as (
    select coalesce(sealed.id, present.id) as id,
      case when present.id is null then 'removed' when sealed.id is null then 'added' else 'changed' end as reason
    from sealed full join present on present.id = sealed.id
    where sealed.hash is distinct from present.hash
    order by sealed.place nulls last, present.created_at limit 1
  )
  select seal.seq, cardinality(seal.ids) as events, encode(seal.digest, 'hex') as digest,
    encode(seal.last_digest, 'hex') as last_digest, seal.digest = sha256(coalesce(seal.last_digest, '') || (select string_agg(hash, '' order by place) from sealed))
      and seal.from_at >= coalesce(seal.last_to, '-infinity')
      and coalesce(seal.bounds = audit_bounds(seal.last_bounds, seal.from_at, seal.to_at),
        seal.to_at <= ${$.signed_from}::timestamptz) as chained,
    broken.id as broken_id,
    case when seal.last_seq is null and seal.seq > 1 then 'removed' else broken.reason end as broken_reason
  from seal left join broken on true`,
  { slow: true, replica: true }
)

export type AuditTail = {
  seq: number | null
  digest: string
  bounds: string | null
  to_at: string
  /** Whether `checkNextSeal` looks at it. */
  kept: boolean
  signatures: Signature[] | null
  /** The newest segment that was ever signed. */
  signed_seq: number | null
  /** An event that is old enough to be sealed and is in no segment. */
  added_id: string | null
}

/** The end of the gate's tenant's chain. */
export const readAuditTail = statement(
  'audit_tail',
  (_, $: { tenant_id: string; kept_from: string }) => sql<AuditTail>`
  select s.seq, encode(s.digest, 'hex') as digest, encode(s.bounds, 'hex') as bounds, audit_time(s.to_at) as to_at,
    s.from_at >= ${$.kept_from}::timestamptz as kept,
    (select jsonb_agg(jsonb_build_object('key_id', g.key_id, 'signature', encode(g.signature, 'hex')))
      from audit_signatures g where g.tenant_id = ${$.tenant_id} and g.seq = s.seq) as signatures,
    (select max(g.seq) from audit_signatures g where g.tenant_id = ${$.tenant_id}) as signed_seq,
    (select e.id from audit_events e where e.tenant_id = ${$.tenant_id}
      and e.created_at > coalesce(s.to_at, '-infinity') and e.created_at >= ${$.kept_from}::timestamptz
      and e.created_at <= h.sealed_to order by e.created_at limit 1) as added_id
  from (select nullif(sealed_to, 'infinity')::timestamptz as sealed_to from audit_state()) h
  left join (
    select * from audit_seals where tenant_id = ${$.tenant_id} order by seq desc limit 1
  ) s on true`,
  { slow: true, replica: true }
)

export type Broken = { segment: number; id: string | null; reason: string }

/** What is wrong with the end of a chain whose segments fit each other: null when nothing is. */
export function judgeTail(
  keys: AuditKeys,
  tenant_id: string,
  tail: AuditTail,
  signed_from: string | null
): Broken | null {
  const { seq, signed_seq, to_at, added_id } = tail
  const last = seq ?? 0
  if (signed_seq !== null && signed_seq > last) return { segment: signed_seq, id: null, reason: 'removed' }
  const mustBeSigned = seq !== null && signed_from !== null && to_at > signed_from
  if (mustBeSigned && !keys.verify(factsOf({ ...tail, tenant_id, seq }), tail.signatures)) {
    return { segment: seq, id: null, reason: 'unsigned' }
  }
  return added_id === null ? null : { segment: last + 1, id: added_id, reason: 'added' }
}

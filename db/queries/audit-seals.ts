import { sql } from 'kysely'
import type { AuditKeys, Signature } from '../../src/auth/audit-keys.ts'
import { statement } from '../gate/statement.ts'

/*
 * Queries and checks for verification: whether the sealed audit log is still as it was written.
 */

/** The newest segment of a tenant's chain. Times have microseconds, digests are hexadecimal. */
export type Head = { tenant_id: string; seq: number; digest: string; bounds: string | null; to_at: string }

/**
 * The fields of a head that are signed. They cover all earlier segments too, because each digest includes the one
 * before.
 */
export const signedFieldsOf = ({ tenant_id, seq, digest, bounds, to_at }: Head) => [
  'head',
  tenant_id,
  seq,
  digest,
  bounds,
  to_at
]

export type Statement = { kind: 'signed_from' | 'dropped_to'; at: string; keep_days: number }
export const signedFieldsOfStatement = ({ kind, at, keep_days }: Statement) => ['statement', kind, at, keep_days]

export type AuditState = {
  sealed_to: string
  dropped_to: string
  keep_days: number
  /** Months before this time have passed the retention that the owner has set. */
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

/** The later of two times. All times have one text format, so they compare as text; '-infinity' sorts first. */
const laterOf = (one: string, other: string) => (one > other ? one : other)

/**
 * Reads the signed statements about the whole log; statements without a valid signature are ignored. `signed_from`: every
 * segment that ends later is covered by a signature; null when nothing has been signed yet. `kept_from`: the retention has
 * dropped the events before this time.
 */
export function readStatements(keys: AuditKeys, { statements }: Pick<AuditState, 'statements'>) {
  const valid = (statements ?? []).filter((each) => keys.verify(signedFieldsOfStatement(each), [each]))
  const times = (kind: Statement['kind']) => valid.flatMap((each) => (each.kind === kind ? each.at : [])).sort()
  return {
    signed_from: times('signed_from')[0] ?? null,
    kept_from: times('dropped_to').reduce(laterOf, '-infinity')
  }
}

export type SealCheck = {
  seq: number
  events: number
  /** The digest matches the hashes and the segment before, and the bounds match too. */
  chained: boolean
  digest: string
  /** The digest of the segment before; null when that segment is missing. */
  last_digest: string | null
  broken_id: string | null
  broken_reason: 'changed' | 'removed' | 'added' | null
}

/**
 * Compares the segment after number `after`, of the gate's tenant, with the rows that exist now, and returns the first row
 * that does not match.
 *
 * A segment covers all time since the end of the one before, so that no event can be inserted between two segments. Segments
 * that begin before `kept_from` are skipped. Segments that end after `signed_from` must have signed bounds.
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
  /** Whether `checkNextSeal` checks this segment. */
  kept: boolean
  signatures: Signature[] | null
  /** The newest segment that was ever signed. */
  signed_seq: number | null
  /** An event that is old enough to be sealed but is in no segment. */
  added_id: string | null
}

/** Reads the end of the chain of the gate's tenant. */
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

/** Checks the end of a chain whose segments have been checked. Returns the fault, or null when there is none. */
export function checkTail(
  keys: AuditKeys,
  tenant_id: string,
  tail: AuditTail,
  signed_from: string | null
): Broken | null {
  const { seq, signed_seq, to_at, added_id } = tail
  const last = seq ?? 0
  if (signed_seq !== null && signed_seq > last) return { segment: signed_seq, id: null, reason: 'removed' }
  const mustBeSigned = seq !== null && signed_from !== null && to_at > signed_from
  if (mustBeSigned && !keys.verify(signedFieldsOf({ ...tail, tenant_id, seq }), tail.signatures)) {
    return { segment: seq, id: null, reason: 'unsigned' }
  }
  return added_id === null ? null : { segment: last + 1, id: added_id, reason: 'added' }
}

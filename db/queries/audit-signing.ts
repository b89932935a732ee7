import { createHash } from 'node:crypto'
import { sql } from 'kysely'
import type { AuditKeys, Signature } from '../../src/auth/audit-keys.ts'
import type { TenantGate, TenantTransaction } from '../gate/gate.ts'
import { systemScope } from '../gate/gate-query.ts'
import { statement } from '../gate/statement.ts'
import {
  type AuditState,
  type Head,
  readAuditState,
  readStatements,
  type Statement,
  signedFieldsOf,
  signedFieldsOfStatement
} from './audit-seals.ts'

/*
 * Sealing, signing and retention of the audit log. A head is signed only when it continues a chain whose previous head was
 * signed, so one valid signature at the end covers the whole chain.
 */

const pageOfTenants = 500
/** The start of signing for a log of which nothing had been sealed before. */
const beginning = '1970-01-01T00:00:00.000000Z'

export type SealedHead = Head & Signature & { events: number }

type FreshHead = Head & {
  events: number
  last_seq: number | null
  last_digest: string
  last_bounds: string | null
  last_to: string
  signatures: Signature[] | null
}

const addStatement = statement(
  'add_audit_statement',
  (_, $: Statement & { key_id: string; signature: Buffer }) => sql<{ added: unknown }>`
  select add_audit_statement(${$.kind}, ${$.at}::timestamptz, ${$.keep_days}, ${$.key_id}, ${$.signature}) as added`,
  { writes: true }
)

const addSignatures = statement(
  'add_audit_signatures',
  (_, $: { tenants: string[]; seqs: number[]; key_id: string; signatures: Buffer[] }) => sql<{ added: number }>`
  select add_audit_signatures(${$.tenants}::uuid[], ${$.seqs}::integer[], ${$.key_id}, ${$.signatures}::bytea[])::int as added`,
  { writes: true }
)

const dropMonths = statement(
  'drop_audit_months',
  (_, __: Record<never, never>) =>
    sql<{ dropped: number; busy: boolean }>`select dropped, busy from drop_audit_months()`,
  { writes: true }
)

export const pruneAuditSeals = statement(
  'prune_audit_seals',
  (_, $: { batch: number }) => sql<{ removed: number }>`select prune_audit_seals(${$.batch})::int as removed`,
  { writes: true }
)

const headsToSign = statement(
  'audit_heads_to_sign',
  (_, $: { key_id: string; after: string; batch: number }) => sql<
    Omit<Head, 'seq'> & { seq: number | null; signatures: Signature[] | null }
  >`
  select tenant_id, seq, encode(digest, 'hex') as digest, encode(bounds, 'hex') as bounds, audit_time(to_at) as to_at, signatures
  from audit_heads_to_sign(${$.key_id}, ${$.after}, ${$.batch})`,
  { writes: true }
)

/**
 * Writes a signed statement of the time from which segments are signed: once, and again with each new key.
 *
 * Resolves to that time, and to whether this is the first statement. The first one accepts unchecked what the log had dropped
 * before.
 */
export async function declareSigning(
  gate: TenantGate,
  keys: AuditKeys
): Promise<{ signed_from: string; first: boolean }> {
  const [state] = await gate.query(systemScope, readAuditState, {})
  if (!state) throw new Error('the audit log has no state')
  const { signed_from, kept_from } = readStatements(keys, state)
  const first = signed_from === null
  // never a time in the future: segments that are sealed until then would need no signature
  const now = new Date().toISOString().replace('Z', '000Z')
  const sealed = state.sealed_to < now ? state.sealed_to : now
  const from = signed_from ?? (sealed === '-infinity' ? beginning : sealed)
  const dropped = first ? state.dropped_to : kept_from
  const isStated = (kind: string, at: string) =>
    state.statements?.some(
      (each) =>
        each.kind === kind &&
        each.at === at &&
        each.key_id === keys.first &&
        keys.verify(signedFieldsOfStatement(each), [each])
    )
  if (!isStated('signed_from', from)) await makeStatement(gate, keys, { kind: 'signed_from', at: from, keep_days: 0 })
  if (dropped !== '-infinity' && !isStated('dropped_to', dropped)) {
    await makeStatement(gate, keys, { kind: 'dropped_to', at: dropped, keep_days: state.keep_days })
  }
  return { signed_from: from, first }
}

async function makeStatement(gate: TenantGate, keys: AuditKeys, made: Statement): Promise<void> {
  await gate.query(systemScope, addStatement, {
    ...made,
    key_id: keys.first,
    signature: keys.sign(signedFieldsOfStatement(made))
  })
}

/**
 * Seals the events that are older than a minute, in all tenants, and signs the new heads in the same transaction. `refused`
 * are the heads that do not continue a signed chain: the chain was rewritten, and they stay unsigned.
 */
export async function sealAudit(
  gate: TenantGate,
  keys: AuditKeys,
  signed_from: string
): Promise<{ sealed: SealedHead[]; refused: Head[] }> {
  const continues = ({ tenant_id, last_seq, last_digest, last_bounds, last_to, signatures }: FreshHead) =>
    last_seq === null ||
    last_to <= signed_from ||
    keys.verify(
      signedFieldsOf({ tenant_id, seq: last_seq, digest: last_digest, bounds: last_bounds, to_at: last_to }),
      signatures
    )
  const [state] = await gate.query(systemScope, readAuditState, {})
  if (!state) throw new Error('the audit log has no state')
  const heads = await gate.transaction(systemScope, async (trx) => {
    const fresh = await sealNext(trx, ticketOf(keys, state))
    const { tenants, seqs, key_id, signatures } = signaturesOf(keys, fresh.filter(continues))
    if (tenants.length > 0) {
      await sql`select add_audit_signatures(${tenants}::uuid[], ${seqs}::integer[], ${key_id}, ${signatures}::bytea[])`.execute(
        trx
      )
    }
    return fresh
  })
  const signed = heads.filter(continues)
  return {
    sealed: signed.map(({ tenant_id, seq, digest, bounds, to_at, events }) => {
      const head = { tenant_id, seq, digest, bounds, to_at }
      return { ...head, events, key_id: keys.first, signature: keys.sign(signedFieldsOf(head)).toString('hex') }
    }),
    refused: heads.filter((head) => !continues(head))
  }
}

type Ticket = { number: string; ticket: Buffer; next_hash: Buffer }

/** The ticket whose hash was stored by the last run, whichever key made it, and the hash of the next ticket. */
function ticketOf(keys: AuditKeys, { ticket_number: number, ticket_hash }: AuditState): Ticket {
  const hashOf = (ticket: Buffer) => createHash('sha256').update(ticket).digest()
  const tickets = keys.signWithAll(['ticket', number])
  const ticket = tickets.find((each) => ticket_hash?.equals(hashOf(each))) ?? (tickets[0] as Buffer)
  return { number, ticket, next_hash: hashOf(keys.sign(['ticket', String(BigInt(number) + 1n)])) }
}

async function sealNext(trx: TenantTransaction, { number, ticket, next_hash }: Ticket): Promise<FreshHead[]> {
  const { rows } = await sql<FreshHead>`
    select tenant_id, seq, events, encode(digest, 'hex') as digest, encode(bounds, 'hex') as bounds, audit_time(to_at) as to_at,
      last_seq, encode(last_digest, 'hex') as last_digest, encode(last_bounds, 'hex') as last_bounds,
      audit_time(last_to) as last_to, signatures
    from seal_audit_events(${number}, ${ticket}, ${next_hash})`.execute(trx)
  return rows
}

function signaturesOf(keys: AuditKeys, heads: readonly Head[]) {
  return {
    tenants: heads.map(({ tenant_id }) => tenant_id),
    seqs: heads.map(({ seq }) => seq),
    key_id: keys.first,
    signatures: heads.map((head) => keys.sign(signedFieldsOf(head)))
  }
}

/** Signs with the first key every head that only an older key has signed, so that the older key can be retired. */
export async function signWithNewKey(gate: TenantGate, keys: AuditKeys): Promise<void> {
  for (let after = '00000000-0000-0000-0000-000000000000'; ; ) {
    const page = await gate.query(systemScope, headsToSign, { key_id: keys.first, after, batch: pageOfTenants })
    const heads = page.flatMap((row) =>
      row.seq !== null && keys.verify(signedFieldsOf({ ...row, seq: row.seq }), row.signatures)
        ? [{ ...row, seq: row.seq }]
        : []
    )
    if (heads.length > 0) await gate.query(systemScope, addSignatures, signaturesOf(keys, heads))
    const last = page.at(-1)
    if (!last || page.length < pageOfTenants) return
    after = last.tenant_id
  }
}

/**
 * Drops the months that have passed the retention. Writes a signed statement first, because afterwards nothing else proves
 * that the retention removed them. `busy`: a reader holds a lock on the log, and the next run tries again.
 */
export async function dropAuditMonths(
  gate: TenantGate,
  keys: AuditKeys
): Promise<{ dropped: number; busy: boolean; to: string | null }> {
  const [state] = await gate.query(systemScope, readAuditState, {})
  if (!state?.due_to) return { dropped: 0, busy: false, to: null }
  const { kept_from } = readStatements(keys, state)
  if (state.due_to > kept_from) {
    await makeStatement(gate, keys, { kind: 'dropped_to', at: state.due_to, keep_days: state.keep_days })
  }
  const [result] = await gate.query(systemScope, dropMonths, {})
  return { dropped: result?.dropped ?? 0, busy: result?.busy ?? false, to: state.due_to }
}

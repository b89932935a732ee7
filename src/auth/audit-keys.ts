import { createHmac, timingSafeEqual } from 'node:crypto'
import { createKeyRing, deriveKey } from './keys.ts'

const purpose = 'audit seal'

/** As the database keeps it, in hexadecimal. */
export type Signature = { key_id: string; signature: string }

export type AuditKeys = ReturnType<typeof createAuditKeys>

/**
 * Signs what is said of the audit log: the first key of the list signs, all verify. The keys come from the peppers of passwords,
 * which stay for as long as a stored password needs them; a secret of tokens may have to go at once.
 */
export function createAuditKeys(peppers: readonly string[]) {
  const ring = createKeyRing(peppers, purpose)
  const keys = new Map([...ring.byId.values()].map(({ id, secret }) => [id, deriveKey(secret, purpose)]))

  function macOf(id: string, facts: readonly unknown[]): Buffer | undefined {
    const key = keys.get(id)
    return key && createHmac('sha256', key).update(JSON.stringify(facts)).digest()
  }

  return {
    first: ring.first.id,
    count: keys.size,
    /** What each key of the list makes of the same facts, the first one first. */
    each: (facts: readonly unknown[]): Buffer[] => [...keys.keys()].map((id) => macOf(id, facts) as Buffer),
    sign: (facts: readonly unknown[]): Buffer => macOf(ring.first.id, facts) as Buffer,
    /** Whether one of the signatures is good. */
    holds: (facts: readonly unknown[], signatures: readonly Signature[] | null): boolean =>
      (signatures ?? []).some(({ key_id, signature }) => {
        const mac = macOf(key_id, facts)
        const given = Buffer.from(signature, 'hex')
        return mac !== undefined && given.length === mac.length && timingSafeEqual(given, mac)
      })
  }
}

import { createHmac, timingSafeEqual } from 'node:crypto'
import { createKeyRing, deriveKey } from '../keys.ts'

const purpose = 'audit seal'

/** A signature as it is stored: the id of its key, and the MAC in hexadecimal. */
export type Signature = { key_id: string; signature: string }

export type AuditKeys = ReturnType<typeof createAuditKeys>

/**
 * Signs statements about the audit log with HMAC-SHA256. The first key of the list signs, and all keys verify.
 *
 * The keys are derived from the password peppers, which stay configured for as long as a stored password needs them. A
 * token secret would not do, because it may have to be removed at once.
 */
export function createAuditKeys(peppers: readonly string[]) {
  const ring = createKeyRing(peppers, purpose)
  const keys = new Map([...ring.byId.values()].map(({ id, secret }) => [id, deriveKey(secret, purpose)]))

  function macOf(id: string, facts: readonly unknown[]): Buffer | undefined {
    const key = keys.get(id)
    return key && createHmac('sha256', key).update(JSON.stringify(facts)).digest()
  }

  return {
    /** The id of the key that signs. */
    first: ring.first.id,
    count: keys.size,
    /** Signs the same facts with each key of the list, in the order of the list. */
    signWithAll: (facts: readonly unknown[]): Buffer[] => [...keys.keys()].map((id) => macOf(id, facts) as Buffer),
    sign: (facts: readonly unknown[]): Buffer => macOf(ring.first.id, facts) as Buffer,
    /** Whether at least one of the signatures is valid. */
    verify: (facts: readonly unknown[], signatures: readonly Signature[] | null): boolean =>
      (signatures ?? []).some(({ key_id, signature }) => {
        const mac = macOf(key_id, facts)
        const given = Buffer.from(signature, 'hex')
        return mac !== undefined && given.length === mac.length && timingSafeEqual(given, mac)
      })
  }
}

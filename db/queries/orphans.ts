import { isOurKey } from '../../src/files/store/keys.ts'
import type { StoredObject } from '../../src/files/store/object-store.ts'
import type { TenantGate } from '../gate/gate.ts'
import { systemScope } from '../gate/gate-query.ts'
import { knownObjects, settledAfterSeconds } from './files.ts'

/**
 * Finds the keys of the objects that no row refers to. Objects younger than an hour are skipped, because the row may not be
 * written yet: for an image the object comes first. Objects that the product did not make are ignored.
 */
export function findOrphans(gate: TenantGate, objects: readonly StoredObject[]): Promise<string[]> {
  const settledBefore = Date.now() - settledAfterSeconds * 1000
  const settled = objects.filter(({ key, modified_at }) => isOurKey(key) && modified_at.getTime() < settledBefore)
  return findUnknown(
    gate,
    settled.map(({ key }) => key)
  )
}

/** Returns those of the keys that no row refers to. All keys must be the product's own. */
export async function findUnknown(gate: TenantGate, keys: readonly string[]): Promise<string[]> {
  if (keys.length === 0) return []
  const parts = keys.map((key) => key.split('/') as [string, string, string])
  const known = await gate.query(systemScope, knownObjects, {
    owners: parts.map(([owner]) => owner),
    kinds: parts.map(([, kind]) => kind),
    ids: parts.map(([, , id]) => id)
  })
  const wanted = new Set(known.map(({ owner, kind, id }) => `${owner}/${kind}/${id}`))
  return keys.filter((key) => !wanted.has(key))
}

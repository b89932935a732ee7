import { isOurKey } from '../../src/files/store/keys.ts'
import type { StoredObject } from '../../src/files/store/object-store.ts'
import type { TenantGate } from '../gate/gate.ts'
import { systemScope } from '../gate/gate-query.ts'
import { knownObjects, settledAfterSeconds } from './files.ts'

/**
 * The keys of those objects that no row refers to. What is younger than an hour may belong to a row that is about to be written:
 * of an image the object comes first. An object that the product did not make is left alone.
 */
export function findOrphans(gate: TenantGate, objects: readonly StoredObject[]): Promise<string[]> {
  const settledBefore = Date.now() - settledAfterSeconds * 1000
  const settled = objects.filter(({ key, modified_at }) => isOurKey(key) && modified_at.getTime() < settledBefore)
  return findUnknown(
    gate,
    settled.map(({ key }) => key)
  )
}

/** Of these keys of the product, those that no row refers to. */
async function findUnknown(gate: TenantGate, keys: readonly string[]): Promise<string[]> {
  const parts = keys.map((key) => key.split('/') as [string, string, string])
  const known = await gate.query(systemScope, knownObjects, {
    owners: parts.map(([owner]) => owner),
    kinds: parts.map(([, kind]) => kind),
    ids: parts.map(([, , id]) => id)
  })
  const wanted = new Set(known.map(({ owner, kind, id }) => `${owner}/${kind}/${id}`))
  return keys.filter((key) => !wanted.has(key))
}

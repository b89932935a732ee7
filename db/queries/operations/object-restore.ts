import {
  adoptStore,
  allObjects,
  copyObject,
  createBatch,
  merged,
  type ObjectBackup
} from '../../../src/files/object-backup.ts'
import type { ObjectStore, StoredObject } from '../../../src/files/store/object-store.ts'
import type { TenantGate } from '../../gate/gate.ts'
import { findUnknown } from '../orphans.ts'

const page = 1000

/**
 * Copies the objects that rows of the database refer to and the store lacks from the backup into the store. Nothing that the store
 * has is changed. Objects that belong to no row stay in the backup. Then the store is the one that is copied to this backup.
 */
export async function restoreObjects(gate: TenantGate, store: ObjectStore, backup: ObjectBackup) {
  const counts = { restored: 0, bytes: 0, unknown: 0 }
  const copies = createBatch()

  async function restore(missing: StoredObject[]): Promise<void> {
    const unknown = new Set(
      await findUnknown(
        gate,
        missing.map(({ key }) => key)
      )
    )
    counts.unknown += unknown.size
    for (const { key, size } of missing) {
      if (unknown.has(key)) continue
      await copies.add(async () => {
        if (!(await copyObject(backup.objects, store, key))) return
        counts.restored++
        counts.bytes += size
      })
    }
  }

  let missing: StoredObject[] = []
  for await (const { kept, copy } of merged({ kept: allObjects(store), copy: allObjects(backup.objects) })) {
    if (kept || !copy) continue
    missing.push(copy)
    if (missing.length < page) continue
    await restore(missing)
    missing = []
  }
  await restore(missing)
  await copies.settle()
  await adoptStore(store, backup)
  return counts
}

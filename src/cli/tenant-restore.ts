import { migrate } from '../../db/migrate.ts'
import { type AgencyCopy, readAgency, restoreAgency, Unrestorable } from '../../db/queries/operations/tenant-restore.ts'
import { readStoreInstallation } from '../../db/queries/store-fence.ts'
import { revocationSeconds } from '../auth/token-life.ts'
import { readRestoreConfig } from '../config/backups.ts'
import { copyObject, openObjectBackup } from '../files/object-backup.ts'
import { openBackup, openStore } from '../files/store/configured-store.ts'
import { fileKey, imageKey } from '../files/store/keys.ts'
import type { ObjectStore } from '../files/store/object-store.ts'
import { normalizeSlug } from '../tenancy/slugs.ts'
import { end, endFailed, openGate, readSettings, say } from './operator.ts'

/** Long enough for the rows of a large agency. Its tables are locked row by row, so nobody else waits. */
const timeouts = { statement_timeout: 600_000, lock_timeout: 30_000 }

/**
 * Restores one agency from the database that RESTORE_DATABASE_URL names. First come the objects, then the rows in one
 * transaction. So no restored row is ever without its bytes, and a failure leaves the agency as it was.
 */
export async function restoreTenant(given: string): Promise<never> {
  const config = readSettings(readRestoreConfig)
  const slug = normalizeSlug(given)
  const [source, target] = [openGate(config.restoreDatabaseUrl, timeouts), openGate(config.databaseOwnerUrl, timeouts)]
  const [store, bucket] = [await openStore(config), await openBackup(config)]
  try {
    // the copy may be of an older version
    await migrate(config.restoreDatabaseUrl, say)
    const { id, copiedAt } = await findCopy(source.pool, slug)
    const copy = id === undefined ? undefined : await readAgency(source.gate, id)
    if (id === undefined || copy === undefined) return end(1, `the copy of the database has no agency called ${slug}`)
    const installation = await readStoreInstallation(store)
    if (installation === undefined) return end(1, 'nothing is restored: the store has no mark of an installation')
    const objects = await restoreObjects(store, openObjectBackup(bucket, installation).objects, id, copy)
    const { members, files, invitations } = await restoreAgency(target.gate, id, copy, {
      copiedAt,
      restoreForSeconds: config.fileRestoreFor,
      tokenSeconds: revocationSeconds(config)
    })
    say(
      `members: ${members.added} added, ${members.changed} changed, ${members.removed} removed, ${members.without_account} without an account`
    )
    say(
      `files: ${files.restored} restored, ${files.set_aside} of later set aside as deleted; ${objects.restored} objects copied back`
    )
    say(`invitations: ${invitations}, with new links`)
    for (const key of objects.missing) say(`${key} is neither in the store nor in the backup`)
    return end(objects.missing.length > 0 ? 1 : 0, `${slug} is as it was at ${copiedAt.toISOString()}`)
  } catch (err) {
    return err instanceof Unrestorable ? end(1, `nothing is restored: ${err.message}`) : endFailed(err)
  }
}

/** The id of the agency with this address in the copy, and the time of the copy. */
async function findCopy(pool: ReturnType<typeof openGate>['pool'], slug: string) {
  const client = await pool.connect()
  try {
    // only the directory sees agencies before one is known
    await client.query('begin; set local role aggios_directory')
    const found = await client.query<{ id: string | null }>('select id from find_tenant($1)', [slug])
    await client.query('commit')
    const time = await client.query<{ at: Date }>('select coalesce(pg_last_xact_replay_timestamp(), now()) as at')
    return { id: found.rows[0]?.id ?? undefined, copiedAt: time.rows[0]?.at as Date }
  } finally {
    client.release()
  }
}

/** Copies the objects that rows of the copy refer to and the store lacks. Names those that are nowhere. */
async function restoreObjects(store: ObjectStore, backup: ObjectStore, id: string, { files, tenant }: AgencyCopy) {
  const { logo_url } = JSON.parse(tenant.json) as { logo_url: string | null }
  const logo = logo_url === null ? [] : [imageKey(id, logo_url.slice(logo_url.lastIndexOf('/') + 1))]
  const sizes = new Map(files.map((file) => [fileKey(id, file.id), (JSON.parse(file.json) as { size: number }).size]))
  const missing: string[] = []
  let restored = 0
  for (const key of [...sizes.keys(), ...logo]) {
    if ((await store.size(key)) !== undefined) continue
    if (await copyObject(backup, store, key)) restored++
    // an empty file that was uploaded in parts has no object
    else if (sizes.get(key) !== 0) missing.push(key)
  }
  return { restored, missing }
}

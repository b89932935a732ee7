import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import {
  type ExportedAgency,
  type ExportedFile,
  importAgency,
  Unimportable
} from '../../db/queries/operations/tenant-import.ts'
import { readImportConfig } from '../config/backups.ts'
import { describe } from '../error-text.ts'
import { openStore } from '../files/store/configured-store.ts'
import { fileKey } from '../files/store/keys.ts'
import { writeObject } from '../files/store/object-writer.ts'
import { normalizeSlug } from '../tenancy/slugs.ts'
import { isUuid } from '../uuids.ts'
import { end, endFailed, openGate, readSettings, say } from './operator.ts'

const limits = { statement_timeout: 600_000, lock_timeout: 30_000 }

/**
 * Imports an agency. First every file is compared with its digest, then the bytes are written, then the rows in one
 * transaction. Bytes that no row refers to in the end are removed by the sweep.
 */
export async function importTenant(path: string, folder: string, slug: string | undefined): Promise<never> {
  const config = readSettings(readImportConfig)
  const { gate } = openGate(config.databaseOwnerUrl, limits)
  const store = await openStore(config)
  try {
    const text = await readFile(path, 'utf8')
    const agency = readExport(text)
    const files = agency.files.filter(({ status }) => status === 'ready')
    for (const file of files) await requireWhole(folder, file)
    for (const file of files) {
      await writeObject(store, fileKey(agency.tenant.id, file.id), createReadStream(join(folder, file.id)))
    }
    const chosen = normalizeSlug(slug ?? agency.tenant.slug)
    const source = createHash('sha256').update(text).digest('hex')
    const outcome = await importAgency(gate, agency, { slug: chosen, source })
    const { joined, created, invited } = outcome.members
    say(
      `people: ${joined} had an account here, ${created} got one without a password, ${invited.length} must be invited`
    )
    for (const email of invited) say(`  send the invitation of ${email} again`)
    say(`${outcome.files} files, ${outcome.invitations} open invitations, whose mails must be sent again`)
    return end(0, `${chosen} is here`)
  } catch (err) {
    return err instanceof Unimportable ? end(1, `nothing is imported: ${err.message}`) : endFailed(err)
  }
}

/** Reads the lines of `GET /tenant/export`. Sessions and audit events of the other installation stay in the file. */
function readExport(text: string): ExportedAgency {
  const tables: Record<string, unknown[]> = { tenant: [], member: [], invitation: [], file: [], domain: [] }
  for (const [index, line] of text.split('\n').entries()) {
    if (line === '') continue
    try {
      const { table, row } = JSON.parse(line) as { table: string; row: unknown }
      tables[table]?.push(row)
    } catch {
      throw new Unimportable(`line ${index + 1} of the export is no JSON`)
    }
  }
  const [tenant] = tables.tenant as ExportedAgency['tenant'][]
  if (!tenant || !isUuid(tenant.id)) throw new Unimportable('the export has no agency')
  return {
    tenant,
    members: tables.member,
    invitations: tables.invitation,
    files: tables.file,
    domains: tables.domain
  } as ExportedAgency
}

/** Rejects when the bytes of a file are not those that the export says. */
async function requireWhole(folder: string, file: ExportedFile): Promise<void> {
  // the name of a path comes from the export
  if (!isUuid(file.id)) throw new Unimportable(`${JSON.stringify(file.id)} is no id of a file`)
  const hash = createHash('sha256')
  try {
    for await (const chunk of createReadStream(join(folder, file.id))) hash.update(chunk as Buffer)
  } catch (err) {
    throw new Unimportable(`the bytes of ${file.name} can't be read: ${describe(err)}`)
  }
  if (hash.digest('hex') !== file.sha256)
    throw new Unimportable(`the bytes of ${file.name} are not those of the export`)
}

import { setTimeout as sleep } from 'node:timers/promises'
import { InvalidArgumentError } from 'commander'
import { compareFiles } from '../../db/queries/file-comparison.ts'
import { restoreObjects } from '../../db/queries/operations/object-restore.ts'
import { acceptStore, checkStoreOwner, readInstallation, readStoreInstallation } from '../../db/queries/store-fence.ts'
import { readBackupConfig } from '../config/backups.ts'
import { describe } from '../error-text.ts'
import { backUpObjects, completeUntil, openObjectBackup } from '../files/object-backup.ts'
import { openBackup, openStore } from '../files/store/configured-store.ts'
import type { ObjectStore } from '../files/store/object-store.ts'
import { createOperatorCommand, endsSomething } from './command.ts'
import { end, operate, operateOn, Refusal, readSettings, say } from './operator.ts'

export const command = createOperatorCommand(
  'files',
  'Compares the store of files with the rows of the database, and copies it to the bucket for backups and back.'
)

endsSomething(command.command('compare'), ({ repair }) => (repair ? 'removes files and objects' : undefined))
  .description(
    'Compares the rows of files with the objects in the store, and prints one line for each mismatch. Use it after a restore of the database or of the store. Servers may run meanwhile.'
  )
  .option(
    '--repair',
    'remove files whose bytes are lost (with an event in the audit log of their agency), remove objects without a row, and correct wrong counts',
    false
  )
  .action(({ repair }: { repair: boolean }) => compare({ repair }))

endsSomething(command.command('accept-store'), 'lets the sweep remove objects that no row refers to')
  .description(
    'Compares as well, and then marks the store as the store of this database: the sweep continues and removes the objects without a row. Every other database that uses the store stops sweeping it.'
  )
  .action(() => compare({ repair: false, accept: true }))

command
  .command('backup')
  .description(
    'Copies the objects that the bucket for backups (BACKUP_S3_ENDPOINT and so on) lacks. Objects that the store no longer has stay there for BACKUP_DAYS.'
  )
  .option('--every <seconds>', 'repeat it, with that pause, until a signal comes', wholeSeconds)
  .option('--check <seconds>', 'copy nothing; exit with 1 when the last complete copy is older', wholeSeconds)
  .action(({ every, check }: { every?: number; check?: number }) =>
    check === undefined ? backUp(every) : checkBackup(check)
  )

command
  .command('restore')
  .description(
    'Copies the objects that rows refer to and the store lacks from the bucket for backups. Changes nothing that the store has. Use it after a restore of the database.'
  )
  .action(restore)

function wholeSeconds(given: string): number {
  if (!/^[1-9]\d{0,6}$/.test(given)) throw new InvalidArgumentError('must be a number of seconds')
  return Number(given)
}

async function backUp(every: number | undefined): Promise<void> {
  const config = readSettings(readBackupConfig)
  const [store, bucket] = [await openStore(config), await openBackup(config)]
  const stopping = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => stopping.abort())
  for (;;) {
    try {
      const { copied, bytes, removed, complete_until } = await backUpObjects(
        store,
        await openCopy(store, bucket),
        config.backupDays * 86_400_000
      )
      if (every === undefined || copied > 0 || removed > 0)
        say(
          `${copied} objects copied (${bytes} bytes), ${removed} removed; complete until ${complete_until.toISOString()}`
        )
    } catch (err) {
      if (every === undefined) return end(1, `failed: ${describe(err)}`)
      process.stderr.write(`the objects could not be copied, and are tried again: ${describe(err)}\n`)
    }
    if (every === undefined || stopping.signal.aborted) break
    await sleep(every * 1000, undefined, { signal: stopping.signal }).catch(() => {})
    if (stopping.signal.aborted) break
  }
  store.close()
  bucket.close()
}

/** The copy of the installation that the mark of the store names. So no installation touches the copy of another one. */
async function openCopy(store: ObjectStore, bucket: ObjectStore) {
  const installation = await readStoreInstallation(store)
  if (installation !== undefined) return openObjectBackup(bucket, installation)
  throw new Error(
    'the store has no mark of an installation, so it may be the wrong one; the server marks an empty one, and npm run files -- accept-store any other'
  )
}

async function checkBackup(seconds: number): Promise<never> {
  const config = readSettings(readBackupConfig)
  const [store, bucket] = [await openStore(config), await openBackup(config)]
  try {
    const until = await completeUntil(await openCopy(store, bucket))
    if (until === undefined) return end(1, 'the objects were never copied')
    const age = Math.round((Date.now() - until.getTime()) / 1000)
    return end(age > seconds ? 1 : 0, `the copy of the objects is complete until ${until.toISOString()}, ${age} s ago`)
  } catch (err) {
    return end(1, `failed: ${describe(err)}`)
  }
}

function restore(): Promise<never> {
  return operateOn(readSettings(readBackupConfig), async (gate, config) => {
    const [store, bucket] = [await openStore(config), await openBackup(config)]
    try {
      const { restored, bytes, unknown } = await restoreObjects(
        gate,
        store,
        openObjectBackup(bucket, await readInstallation(gate))
      )
      return `${restored} objects restored (${bytes} bytes); ${unknown} belong to no row and stay in the backup`
    } finally {
      store.close()
      bucket.close()
    }
  })
}

function compare({ repair, accept = false }: { repair: boolean; accept?: boolean }): Promise<never> {
  return operate(async (gate, config) => {
    const store = await openStore(config)
    try {
      if (repair) {
        const verdict = await checkStoreOwner(gate, store)
        if (verdict !== 'ours') throw new Refusal(`nothing is repaired, the store is not this database's: ${verdict}`)
      }
      const { lost, orphans, miscounted } = await compareFiles({ gate, store, repair, report: say })
      const found = `${lost} files without their bytes, ${orphans} objects without a row, ${miscounted} wrong counts`
      if (!accept) return repair ? `repaired: ${found}` : found
      await acceptStore(gate, store)
      return `the store is this database's now: ${found}`
    } finally {
      store.close()
    }
  })
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()

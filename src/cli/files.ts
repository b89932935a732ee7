import { compareFiles } from '../../db/queries/file-comparison.ts'
import { acceptStore, checkStoreOwner } from '../../db/queries/store-fence.ts'
import { openStore } from '../files/store/configured-store.ts'
import { createCommand } from './command.ts'
import { operate, Refusal } from './operator.ts'

/** Writes one line per mismatch to stdout. The summary goes to stderr. */
const say = (line: string) => void process.stdout.write(`${line}\n`)

const command = createCommand('files', 'Compares the store of files with the rows of the database.')

command
  .command('compare')
  .description(
    'Compares the rows of files with the objects in the store, and prints one line for each mismatch. Use it after a restore of the database or of the store. Servers may run meanwhile.'
  )
  .option(
    '--repair',
    'remove files whose bytes are lost (with an event in the audit log of their agency), remove objects without a row, and correct wrong counts',
    false
  )
  .action(({ repair }: { repair: boolean }) => compare({ repair }))

command
  .command('accept-store')
  .description(
    'Compares as well, and then marks the store as the store of this database: the sweep continues and removes the objects without a row. Every other database that uses the store stops sweeping it.'
  )
  .action(() => compare({ repair: false, accept: true }))

await command.parseAsync()

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

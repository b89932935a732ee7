import { compareFiles } from '../../db/queries/file-comparison.ts'
import { acceptStore, judgeStore } from '../../db/queries/store-fence.ts'
import { openStore } from '../files/store/configured-store.ts'
import { createCommand } from './command.ts'
import { operate, Refusal } from './operator.ts'

/** Lines for what does not match go to stdout, and what it comes to to stderr. */
const say = (line: string) => void process.stdout.write(`${line}\n`)

const command = createCommand('files', 'Holds what lies in the store of files against the rows of the database.')

command
  .command('compare')
  .description(
    'Compares the rows of files with what lies in the store, one line for each that does not match: after a restore of one of the two, say. Servers may go on working meanwhile.'
  )
  .option(
    '--repair',
    'give up files whose bytes are lost (their agencies read so in their audit logs), remove objects that no row refers to, and count again where a count is wrong',
    false
  )
  .action(({ repair }: { repair: boolean }) => compare({ repair }))

command
  .command('accept-store')
  .description(
    'Compares too, and then takes the store for this database: the sweep goes on, and removes the objects that belong to no row. Every other database that uses the store stops to sweep it.'
  )
  .action(() => compare({ repair: false, accept: true }))

await command.parseAsync()

function compare({ repair, accept = false }: { repair: boolean; accept?: boolean }): Promise<never> {
  return operate(async (gate, config) => {
    const store = openStore(config)
    try {
      if (repair) {
        const verdict = await judgeStore(gate, store)
        if (verdict !== 'ours') throw new Refusal(`nothing is repaired, the store is not this database's: ${verdict}`)
      }
      const { lost, orphans, miscounted } = await compareFiles({ gate, store, repair, say })
      const found = `${lost} files without their bytes, ${orphans} objects without a row, ${miscounted} wrong counts`
      if (!accept) return repair ? `repaired: ${found}` : found
      await acceptStore(gate, store)
      return `the store is this database's now: ${found}`
    } finally {
      store.close()
    }
  })
}

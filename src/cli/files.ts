import { compareFiles } from '../../db/comparison.ts'
import { acceptStore, judgeStore } from '../../db/store-fence.ts'
import { openStore } from '../objects/open.ts'
import { end, operate, Refusal } from './operator.ts'

/*
 * npm run files -- compare [--repair]
 * npm run files -- accept-store
 *
 * `compare` holds the rows of files against what lies in the store, one line for each that does not match: after a restore of one
 * of the two, say. Servers may go on working meanwhile. `--repair` gives up files whose bytes are lost (their agencies read so in
 * their audit logs), removes objects that no row refers to, and counts again where a count is wrong.
 *
 * `accept-store` compares too, and then takes the store for this database: the sweep goes on, and removes the objects that belong
 * to no row. Every other database that uses the store stops to sweep it.
 */

const usage = 'usage: files compare [--repair] | files accept-store'
const words = process.argv.slice(2).join(' ')
if (!['compare', 'compare --repair', 'accept-store'].includes(words)) end(64, usage)
const repair = words === 'compare --repair'

const say = (line: string) => void process.stdout.write(`${line}\n`)

await operate(async (gate, config) => {
  const store = openStore(config)
  try {
    if (repair) {
      const verdict = await judgeStore(gate, store)
      if (verdict !== 'ours') throw new Refusal(`nothing is repaired, the store is not this database's: ${verdict}`)
    }
    const { lost, orphans, miscounted } = await compareFiles({ gate, store, repair, say })
    const found = `${lost} files without their bytes, ${orphans} objects without a row, ${miscounted} wrong counts`
    if (words !== 'accept-store') return repair ? `repaired: ${found}` : found
    await acceptStore(gate, store)
    return `the store is this database's now: ${found}`
  } finally {
    store.close()
  }
})

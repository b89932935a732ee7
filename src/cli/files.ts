import { compareFiles } from '../../db/comparison.ts'
import { openStore } from '../objects/open.ts'
import { end, operate } from './operator.ts'

/*
 * npm run files -- compare [--repair]
 *
 * Holds the rows of files against what lies in the store, one line for each that does not match: after a restore of one of the
 * two, say. Servers may go on working meanwhile. `--repair` gives up files whose bytes are lost (their agencies read so in their
 * audit logs), removes objects that no row refers to, and counts again where a count is wrong.
 */

const [command, flag, ...rest] = process.argv.slice(2)
if (command !== 'compare' || rest.length > 0 || (flag !== undefined && flag !== '--repair')) {
  end(64, 'usage: files compare [--repair]')
}
const repair = flag === '--repair'

const say = (line: string) => void process.stdout.write(`${line}\n`)

await operate(async (gate, config) => {
  const store = openStore(config)
  const { lost, orphans, miscounted } = await compareFiles({ gate, store, repair, say })
  store.close()
  const found = `${lost} files without their bytes, ${orphans} objects without a row, ${miscounted} wrong counts`
  return repair ? `repaired: ${found}` : found
})

import type { TenantGate } from '../../../db/gate/gate.ts'
import type { Config } from '../../config/config.ts'
import { createOperatorCommand } from '../command.ts'
import { operate, type Result } from '../operator.ts'
import { keysOf, peppers, type Ring, readStoredKeys, tokenKeys } from './rings.ts'

export const command = createOperatorCommand(
  'keys',
  'Shows the keys of tokens and the peppers of passwords that are configured, and what is stored that still needs each. npm run rotate replaces them.'
)

command
  .command('list')
  .description(
    'Lists the keys by the ids that tokens and stored hashes name, and those that are needed and missing. Shows no secret.'
  )
  .action(() => operate(listKeys))

if (import.meta.main) await command.parseAsync()

type Listed = { setting: string; id: string; first: boolean; needed_by: string[] }

async function listKeys(gate: TenantGate, { jwtSecret, passwordPepper }: Config): Promise<Result> {
  const kinds = await readStoredKeys(gate)
  const needing = (pepper: string) =>
    kinds.filter(({ ring, ids }) => keysOf([pepper], ring).some((id) => ids.includes(id))).map(({ kind }) => kind)
  const list = (ring: Ring, secrets: readonly string[], neededBy: (secret: string) => string[]): Listed[] =>
    secrets.map((secret, index) => {
      const [id = ''] = keysOf([secret], ring)
      return { setting: ring.name, id, first: index === 0, needed_by: neededBy(secret) }
    })
  const keys = [...list(tokenKeys, jwtSecret, () => []), ...list(peppers, passwordPepper, needing)]
  const missing = kinds.flatMap(({ kind, ring, ids }) => {
    const known = keysOf(passwordPepper, ring)
    return ids.filter((id) => !known.includes(id)).map((id) => ({ id, needed_by: kind }))
  })
  const lines = keys.map(({ setting, id, first, needed_by }) => {
    const use = setting === tokenKeys.name ? 'tokens that it has signed' : needed_by.join(', ') || 'nothing'
    return `${setting} ${id}: ${first ? 'the first, in use' : 'not the first'}; needed by ${use}`
  })
  const lost = missing.map(({ id, needed_by }) => `missing ${id}: needed by ${needed_by}`)
  return { text: [...lines, ...lost].join('\n'), data: { keys, missing } }
}

import type { TenantGate } from '../gate/gate.ts'
import { systemScope } from '../gate/gate-query.ts'
import type { Statement } from '../gate/statement.ts'

/**
 * Asks by `inUse` for the ids of the keys that something stored needs. Rejects when `has` does not know one of them: without
 * the key that part of the database could not be read any more. `what` names what is stored.
 */
export async function requireKeysInUse(
  gate: TenantGate,
  inUse: Statement<object, { id: string }>,
  has: (id: string) => boolean,
  what: string
): Promise<void> {
  const stored = await gate.query(systemScope, inUse, {})
  const missing = stored.map(({ id }) => id).filter((id) => !has(id))
  if (missing.length > 0) throw new Error(`PASSWORD_PEPPER lacks the pepper of ${what} (key id ${missing.join(', ')})`)
}

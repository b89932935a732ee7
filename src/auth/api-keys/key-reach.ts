import { createRangeTest } from '../../http/addresses.ts'
import type { Permission } from './permissions.ts'

/** What an API key may do, and from where. Claims have it only where the caller is a key. */
export type KeyReach = {
  permissions: ReadonlySet<Permission>
  cidrs: readonly string[]
  /** Whether the key may be used from an address. Undefined: from every address. */
  allowsFrom: ((address: string) => boolean) | undefined
}

/** The lifetime in seconds of an access token that a key has got, and how long a process remembers a key. */
export const keyTokenSeconds = 900
/**
 * How long an entry of the change feed revokes what was issued for a secret: longer than `keyTokenSeconds`. An interval of
 * PostgreSQL, which db/migrations/0033_api_keys.ts has too.
 */
export const keyRevocationLife = '20 minutes'

export function keyReach(permissions: readonly Permission[], cidrs: readonly string[]): KeyReach {
  return {
    permissions: new Set(permissions),
    cidrs,
    allowsFrom: cidrs.length > 0 ? withLastAnswer(createRangeTest(cidrs)) : undefined
  }
}

/** A test that remembers its last answer: limits and admission ask for each request, and a program seldom moves. */
function withLastAnswer(test: (address: string) => boolean): (address: string) => boolean {
  let last: string | undefined
  let answer = false
  return (address) => {
    if (address !== last) answer = test(address)
    last = address
    return answer
  }
}

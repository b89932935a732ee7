import pg from 'pg'
import { connectionTo } from './gate/connection-settings.ts'

/** A change of the schema takes as long as its rows need, so the role's own timeouts must not apply. */
export const noTimeouts = { statement_timeout: 0, lock_timeout: 0, idle_in_transaction_session_timeout: 0 }

/** Opens a connection as `aggios_owner`, runs `work` with it, and closes it. */
export async function withOwner<T>(ownerUrl: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ ...connectionTo(ownerUrl, noTimeouts), connectionTimeoutMillis: 5000 })
  // a connection that breaks makes the query fail that needs it
  client.on('error', () => {})
  try {
    await client.connect()
    return await work(client)
  } finally {
    await client.end().catch(() => {})
  }
}

import pg from 'pg'
import { connectionTo } from '../../../db/gate/connection-settings.ts'
import { Refusal } from '../operator.ts'

/**
 * Runs `work` while no other rotation runs on the same database. Throws Refusal when one does.
 *
 * The lock belongs to an open transaction, so it ends with this process, and a pooler in transaction mode keeps the connection
 * for it. The transaction reads nothing, so it holds back no clean-up of old rows.
 */
export async function withRotationLock<T>(url: string, work: () => Promise<T>): Promise<T> {
  const client = new pg.Client(connectionTo(url, undefined))
  // a lost connection shows in the statements of the rotation itself
  client.on('error', () => {})
  await client.connect()
  try {
    await client.query('begin')
    await client.query('set local idle_in_transaction_session_timeout = 0')
    const { rows } = await client.query("select pg_try_advisory_xact_lock(hashtext('aggios rotate')) as held")
    if (!rows[0].held) throw new Refusal('another rotation is under way: run this one when it has ended')
    return await work()
  } finally {
    await client.end()
  }
}

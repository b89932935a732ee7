import { sql } from 'kysely'
import { statement } from '../gate/statement.ts'

/**
 * Writes an empty message into the write-ahead log, so that this commit waits until everything before it is as safe as an
 * acknowledged commit: with synchronous replication, until the standby has it.
 *
 * Run it before a reply that acknowledges an earlier change and makes none. After a restart, or when the wait for the standby was
 * cancelled, the primary shows commits that the standby does not have. A failover would lose them.
 */
export const confirmEarlier = statement(
  'confirm_earlier',
  () => sql<{ written: boolean }>`select pg_logical_emit_message(true, 'aggios', '') is not null as written`,
  { writes: true }
)

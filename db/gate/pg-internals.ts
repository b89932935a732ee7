import type { Socket } from 'node:net'
import type pg from 'pg'

/*
 * The parts of pg and pg-protocol that this folder uses although their documentation does not promise them. No other
 * folder uses any. test/private-parts.test.ts checks each of them on the installed version.
 *
 * | part                                                        | used by                                 |
 * | ----------------------------------------------------------- | --------------------------------------- |
 * | `client.connection.stream`, the socket (`socketOf`)         | connection.ts, pipeline.ts, wire.ts     |
 * | pg reads the socket by its only `data` listener; without    | wire.ts                                 |
 * | it, the client still emits `error` and `end`, and `end()`   |                                         |
 * | still closes the session                                    |                                         |
 * | `submit` of a query object, the handlers that pg calls then | gate-query.ts                           |
 * | with the messages, and `callback`, which pg may replace     |                                         |
 * | the methods and members of `PgConnection`                   | gate-query.ts                           |
 * | `prepareValue`: serializes a value                          | gate-query.ts                           |
 * | `Parser`: parses single messages                            | wire.ts                                 |
 * | `serialize`: builds messages                                | wire.ts, wire-format.ts                 |
 * | the pool opens a client by `connect(callback)`              | connection.ts                           |
 * | the texts of errors that have no code                       | connection.ts, failures.ts, start-up.ts |
 */

export { prepareValue } from 'pg/lib/utils.js'
export { serialize } from 'pg-protocol'
export { Parser } from 'pg-protocol/dist/parser.js'

/** The connection that pg passes to `submit`, which pg's types leave out. */
export type PgConnection = {
  parse(config: { name: string; text: string }): void
  bind(config: { statement: string; values: unknown[] }): void
  describe(config: { type: 'P' }): void
  execute(config: object): void
  sync(): void
  stream: Socket
  /** The statements that are prepared on this connection, by name. Maintained by pg. */
  parsedStatements: Record<string, string>
}

/** The socket of an open connection. */
export function socketOf(client: pg.ClientBase): Socket {
  return (client as unknown as { connection: PgConnection }).connection.stream
}

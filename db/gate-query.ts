import pg from 'pg'

/**
 * Whose rows exist and whose identity may be changed, in the statement or transaction that follows. From a verified token,
 * or from what the server itself has verified or created; never from input. Null: nobody's.
 */
export type Scope = { tenant_id: string | null; user_id: string | null }

/** Who asked, for the audit log: request id, address and user agent as JSON, or '' in a worker. */
export type RequestFacts = string

export type GateSettings = Scope & { request: RequestFacts }

/** PostgreSQL's own limits, in milliseconds. */
export type TimeOuts = { statement_timeout: number; lock_timeout: number; idle_in_transaction_session_timeout?: number }

/** Time-outs as a connection of our own is opened with them. */
export function startUpOptions(timeOuts: TimeOuts): string {
  return Object.entries(timeOuts)
    .map(([name, ms]) => `-c ${name}=${ms}`)
    .join(' ')
}

export type QueryConfig = { name: string; text: string; values: unknown[] }

/** The settings of the gate, as one statement. All are local to the transaction, and gone when it ends. */
const gateText =
  "select set_config('app.tenant_id', $1, true), set_config('app.user_id', $2, true), set_config('app.request', $3, true)"
const gateName = 'gate'

/** The gate's settings and, where the connection does not keep them, the time-outs. */
export function gateStatement(
  settings: GateSettings,
  carried: TimeOuts | undefined
): { text: string; values: string[] } {
  const values = [settings.tenant_id ?? '', settings.user_id ?? '', settings.request]
  if (!carried) return { text: gateText, values }
  const limits = Object.entries(carried)
  const more = limits.map(([name], index) => `, set_config('${name}', $${values.length + index + 1}, true)`)
  return { text: gateText + more.join(''), values: [...values, ...limits.map(([, ms]) => String(ms))] }
}

/** Parses the settings' statement on a fresh connection, so that in a flush only the main statement can need a Parse. */
export async function prepareGate(client: pg.ClientBase): Promise<void> {
  await client.query({ name: gateName, text: gateText, values: ['', '', ''] })
}

/** What pg hands to a query that submits itself; its own types leave it out. */
type Wire = {
  parse(config: { name: string; text: string; types: number[] }): void
  bind(config: { portal: string; statement: string; values: string[] }): void
  execute(config: { portal: string; rows: number }): void
}
type WireQuery = {
  prepare(wire: Wire): void
  handleDataRow(message: unknown): void
  handleCommandComplete(message: unknown, wire: Wire): void
  requiresPreparation(): boolean
}
const Query = pg.Query as unknown as new (config: {
  name: string
  text: string
  values: unknown[]
  callback: (err: Error | null, result: pg.QueryResult) => void
}) => WireQuery

/**
 * The settings and one statement in one network flush.
 *
 * Bind and Execute of both stand before a single Sync, so PostgreSQL runs them as one implicit transaction: the settings
 * hold for this statement and can't outlive it, and the isolation costs no round trip. Answers arrive in order, so what
 * comes before the first CommandComplete belongs to the settings and is dropped.
 *
 * The settings must have been prepared (`prepareGate`): pg would take their ParseComplete for that of the main statement.
 *
 * Behind a pooler in transaction mode a connection keeps nothing from one flush to the next. Then the time-outs are `carried`
 * along as settings (the one of the statement counts from its own first message), and both statements are parsed each time
 * and have no name, so a ParseComplete marks none.
 */
export class GateQuery extends Query {
  readonly #settings: { text: string; values: string[] }
  readonly #named: boolean
  #inSettings = true

  constructor(
    settings: GateSettings,
    config: QueryConfig,
    callback: (err: Error | null, result: pg.QueryResult) => void,
    carried?: TimeOuts
  ) {
    super({ ...config, name: carried ? '' : config.name, callback })
    this.#settings = gateStatement(settings, carried)
    this.#named = carried === undefined
  }

  override requiresPreparation(): boolean {
    return true
  }

  override prepare(wire: Wire): void {
    const { text, values } = this.#settings
    if (!this.#named) wire.parse({ name: '', text, types: [] })
    wire.bind({ portal: '', statement: this.#named ? gateName : '', values })
    wire.execute({ portal: '', rows: 0 })
    super.prepare(wire)
  }

  override handleDataRow(message: unknown): void {
    if (!this.#inSettings) super.handleDataRow(message)
  }

  override handleCommandComplete(message: unknown, wire: Wire): void {
    if (this.#inSettings) this.#inSettings = false
    else super.handleCommandComplete(message, wire)
  }
}

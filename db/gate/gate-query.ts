import pg from 'pg'
import { localSettings, type Timeouts, transactionIsolation } from './connection-settings.ts'
import { type PgConnection, prepareValue } from './pg-internals.ts'
import { readTimestamp } from './timestamps.ts'

/**
 * The tenant and the user that a statement or transaction runs as: row security shows the rows of this tenant only, and lets
 * only this user's identity be changed. The values come from a verified token, or from what the server has verified or
 * created itself; never from input. Null means none.
 */
export type Scope = { tenant_id: string | null; user_id: string | null }

/** The origin of a request for the audit log: request id, address and user agent as JSON, or '' in a worker. */
export type RequestFacts = string

export type GateSettings = Scope & { request: RequestFacts }

/**
 * The scope of work for no tenant and no user: look-ups before a tenant is known, workers, the operator's commands. Row
 * security then shows no tenant's rows.
 */
export const systemScope: GateSettings = { tenant_id: null, user_id: null, request: '' }

/** `writes`: the statement changes data, so behind a pooler its transaction sets the isolation level first. */
export type QueryConfig = { name: string; text: string; values: unknown[]; writes?: boolean }

/**
 * The statement that sets the gate's settings. Each is local to the transaction and ends with it. `set_config` never
 * returns null, so all three conditions are evaluated and no row comes back.
 */
const gateText = `select where ${setLocal('app.tenant_id', 1)} or ${setLocal('app.user_id', 2)} or ${setLocal('app.request', 3)}`
export const gateName = 'gate'

function setLocal(setting: string, parameter: number): string {
  return `set_config('${setting}', $${parameter}, true) is null`
}

/** Cached texts: a text is long and depends on the timeouts only, not on the gate's settings. */
const textsWithTimeouts = new WeakMap<Timeouts, string>()

function textWithTimeouts(inlineTimeouts: Timeouts): string {
  const known = textsWithTimeouts.get(inlineTimeouts)
  if (known !== undefined) return known
  const limits = Object.entries(inlineTimeouts).map(([name, ms]) => `set_config('${name}', '${ms}', true) is null`)
  const text = [gateText, ...limits, localSettings].join(' or ')
  textsWithTimeouts.set(inlineTimeouts, text)
  return text
}

/**
 * The statement that sets the gate's settings. With `inlineTimeouts`, for connections that keep no session state, it also
 * sets the timeouts and the other settings that a direct connection is opened with.
 */
export function gateStatement(
  settings: GateSettings,
  inlineTimeouts: Timeouts | undefined
): { text: string; values: string[] } {
  const values = [settings.tenant_id ?? '', settings.user_id ?? '', settings.request]
  return { text: inlineTimeouts ? textWithTimeouts(inlineTimeouts) : gateText, values }
}

/** Prepares the settings' statement on a new connection, so that later only the main statement can need a Parse. */
export async function prepareGate(client: pg.ClientBase): Promise<void> {
  await client.query({ name: gateName, text: gateText, values: ['', '', ''] })
}

export type Field = { name: string; dataTypeID: number }

/** The columns of a statement's rows, and the parser of each. */
export type Shape = { names: string[]; readers: ((text: string) => unknown)[] }

export function shapeOf(fields: readonly Field[]): Shape {
  const readers = fields.map(({ dataTypeID }) =>
    dataTypeID === pg.types.builtins.TIMESTAMPTZ ? readTimestamp : pg.types.getTypeParser(dataTypeID, 'text')
  )
  return { names: fields.map(({ name }) => name), readers }
}

/**
 * The known row shapes per connection, by statement name. PostgreSQL refuses to run a prepared statement whose columns have
 * changed, so a shape stays valid for as long as the connection.
 */
const shapes = new WeakMap<PgConnection, Map<string, Shape>>()

export type QueryCallback = (err: Error | null, rows: unknown[]) => void

/**
 * Sends the gate's settings and one statement in one network flush, on a connection of the pool. Keyed reads use `wire.ts`
 * instead.
 *
 * Bind and Execute of both precede a single Sync, so PostgreSQL runs them as one implicit transaction: the settings apply to
 * this statement, can't outlive it, and cost no round trip. Answers arrive in order, so everything before the first
 * CommandComplete belongs to the settings and is dropped.
 *
 * The settings must have been prepared (`prepareGate`): pg would take their ParseComplete for that of the main statement.
 *
 * Behind a pooler in transaction mode a connection keeps no state from one flush to the next. Then `inlineTimeouts` are set
 * together with all other settings (`statement_timeout` counts from the statement's own first message). A statement that
 * writes is preceded by its isolation level. Every statement is parsed each time and has no name, so pg records no
 * ParseComplete as a prepared statement.
 *
 * It replaces pg's own query class, an event emitter with a rich result. This class asks for the columns of a statement once
 * per connection and makes plain rows, for three quarters of the CPU time.
 */
export class GateQuery {
  readonly name: string
  readonly text: string
  /** pg replaces the callback when a query has a timeout. */
  callback: QueryCallback
  readonly #values: unknown[]
  readonly #settings: { text: string; values: string[] }
  readonly #named: boolean
  readonly #setsIsolation: boolean
  /** How many statements before the main one have not been answered yet. */
  #unansweredSettings: number
  #connection: PgConnection | undefined
  #shape: Shape | undefined
  #rows: unknown[] = []
  #failure: Error | undefined

  constructor(
    settings: GateSettings,
    { name, text, values, writes = false }: QueryConfig,
    done: QueryCallback,
    inlineTimeouts?: Timeouts
  ) {
    this.name = inlineTimeouts ? '' : name
    this.text = text
    this.callback = done
    // before anything is sent: a value that can't be serialized must not leave half a flush behind
    this.#values = values.map(serializeValue)
    this.#settings = gateStatement(settings, inlineTimeouts)
    this.#named = inlineTimeouts === undefined
    this.#setsIsolation = inlineTimeouts !== undefined && writes
    this.#unansweredSettings = this.#setsIsolation ? 2 : 1
  }

  /** Called by pg when the connection is free for this query. */
  submit(connection: PgConnection): null {
    this.#connection = connection
    this.#shape = this.name === '' ? undefined : shapes.get(connection)?.get(this.name)
    const isParsed = this.name !== '' && this.name in connection.parsedStatements
    const { text, values } = this.#settings
    connection.stream.cork()
    if (this.#setsIsolation) {
      connection.parse({ name: '', text: transactionIsolation })
      connection.bind({ statement: '', values: [] })
      connection.execute({})
    }
    if (!this.#named) connection.parse({ name: '', text })
    connection.bind({ statement: this.#named ? gateName : '', values })
    connection.execute({})
    if (!isParsed) connection.parse({ name: this.name, text: this.text })
    connection.bind({ statement: this.name, values: this.#values })
    if (!this.#shape) connection.describe({ type: 'P' })
    connection.execute({})
    connection.sync()
    connection.stream.uncork()
    return null
  }

  handleRowDescription({ fields }: { fields: Field[] }): void {
    this.#shape = shapeOf(fields)
    if (this.name === '' || !this.#connection) return
    const known = shapes.get(this.#connection) ?? new Map()
    shapes.set(this.#connection, known.set(this.name, this.#shape))
  }

  handleDataRow({ fields }: { fields: (string | null)[] }): void {
    if (this.#unansweredSettings > 0 || this.#failure) return
    const { names, readers } = this.#shape as Shape
    const row: Record<string, unknown> = {}
    try {
      for (let i = 0; i < names.length; i++) {
        const text = fields[i] as string | null
        row[names[i] as string] = text === null ? null : (readers[i] as Shape['readers'][number])(text)
      }
    } catch (err) {
      this.#failure = err as Error
    }
    this.#rows.push(row)
  }

  handleCommandComplete(): void {
    this.#unansweredSettings--
  }

  handleError(err: Error): void {
    this.callback(err, [])
  }

  handleReadyForQuery(): void {
    this.callback(this.#failure ?? null, this.#rows)
  }
}

/** Serializes a value as text or bytes. Where an object has no JSON form pg returns undefined, which is sent as null. */
export function serializeValue(value: unknown): string | Buffer | null {
  return typeof value === 'string' ? value : (prepareValue(value) ?? null)
}

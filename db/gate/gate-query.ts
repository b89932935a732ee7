import pg from 'pg'
import { prepareValue } from 'pg/lib/utils.js'
import { localSettings, type Timeouts, transactionIsolation } from './connection-settings.ts'
import { readTimestamp } from './timestamps.ts'

/**
 * Whose rows exist and whose identity may be changed, in the statement or transaction that follows. From a verified token,
 * or from what the server itself has verified or created; never from input. Null: nobody's.
 */
export type Scope = { tenant_id: string | null; user_id: string | null }

/** Who asked, for the audit log: request id, address and user agent as JSON, or '' in a worker. */
export type RequestFacts = string

export type GateSettings = Scope & { request: RequestFacts }

/** The scope of work that is done for no tenant and no user: look-ups before a tenant is known, workers, the operator's commands. */
export const systemScope: GateSettings = { tenant_id: null, user_id: null, request: '' }

/** `writes`: only where it does is it told so behind a pooler, whose connections may be read-only otherwise. */
export type QueryConfig = { name: string; text: string; values: unknown[]; writes?: boolean }

/**
 * The settings of the gate, as one statement. All are local to the transaction, and gone when it ends. None is ever null, so all
 * of them are set and no row comes back.
 */
const gateText = `select where ${setLocal('app.tenant_id', 1)} or ${setLocal('app.user_id', 2)} or ${setLocal('app.request', 3)}`
export const gateName = 'gate'

function setLocal(setting: string, parameter: number): string {
  return `set_config('${setting}', $${parameter}, true) is null`
}

/** The text does not change with the settings, and is as long as all of them. */
const textsWithTimeouts = new WeakMap<Timeouts, string>()

function textWithTimeouts(inlineTimeouts: Timeouts): string {
  const known = textsWithTimeouts.get(inlineTimeouts)
  if (known !== undefined) return known
  const limits = Object.entries(inlineTimeouts).map(([name, ms]) => `set_config('${name}', '${ms}', true) is null`)
  const text = [gateText, ...limits, localSettings].join(' or ')
  textsWithTimeouts.set(inlineTimeouts, text)
  return text
}

/** The gate's settings and, where the connection does not keep them, the time-outs and all else that a connection is opened with. */
export function gateStatement(
  settings: GateSettings,
  inlineTimeouts: Timeouts | undefined
): { text: string; values: string[] } {
  const values = [settings.tenant_id ?? '', settings.user_id ?? '', settings.request]
  return { text: inlineTimeouts ? textWithTimeouts(inlineTimeouts) : gateText, values }
}

/** Parses the settings' statement on a fresh connection, so that in a flush only the main statement can need a Parse. */
export async function prepareGate(client: pg.ClientBase): Promise<void> {
  await client.query({ name: gateName, text: gateText, values: ['', '', ''] })
}

export type Field = { name: string; dataTypeID: number }

/** What pg hands to a query that submits itself; its own types leave it out. */
type Connection = {
  parse(config: { name: string; text: string }): void
  bind(config: { statement: string; values: unknown[] }): void
  describe(config: { type: 'P' }): void
  execute(config: object): void
  sync(): void
  stream: { cork(): void; uncork(): void }
  /** Names that PostgreSQL has. pg keeps them. */
  parsedStatements: Record<string, string>
}

/** The columns of a statement's rows, and how each is read. */
export type Shape = { names: string[]; readers: ((text: string) => unknown)[] }

export function shapeOf(fields: readonly Field[]): Shape {
  const readers = fields.map(({ dataTypeID }) =>
    dataTypeID === pg.types.builtins.TIMESTAMPTZ ? readTimestamp : pg.types.getTypeParser(dataTypeID, 'text')
  )
  return { names: fields.map(({ name }) => name), readers }
}

/**
 * What each connection has been told of the rows of a name. A statement whose rows change their columns is refused by
 * PostgreSQL as long as its name lives, so what was told once holds for the connection.
 */
const shapes = new WeakMap<Connection, Map<string, Shape>>()

export type QueryCallback = (err: Error | null, rows: unknown[]) => void

/**
 * The settings and one statement in one network flush, on a connection of the pool. Keyed reads have a way of their own
 * (`wire.ts`).
 *
 * Bind and Execute of both stand before a single Sync, so PostgreSQL runs them as one implicit transaction: the settings
 * hold for this statement and can't outlive it, and the isolation costs no round trip. Answers arrive in order, so what
 * comes before the first CommandComplete belongs to the settings and is dropped.
 *
 * The settings must have been prepared (`prepareGate`): pg would take their ParseComplete for that of the main statement.
 *
 * Behind a pooler in transaction mode a connection keeps nothing from one flush to the next. Then the time-outs are `carried`
 * along as settings (the one of the statement counts from its own first message) together with all others, what writes begins
 * with the modes of its transaction, and every statement is parsed each time and has no name, so a ParseComplete marks none.
 *
 * It is a query of its own and not one of pg's, which is an event emitter with a result that knows everything: this one asks
 * for the columns of a name once a connection and makes plain rows, for three quarters of the CPU time.
 */
export class GateQuery {
  readonly name: string
  readonly text: string
  /** pg replaces it where a query has a time-out. */
  callback: QueryCallback
  readonly #values: unknown[]
  readonly #settings: { text: string; values: string[] }
  readonly #named: boolean
  readonly #setsIsolation: boolean
  /** Of the statements before the main one: how many have not been answered yet. */
  #inSettings: number
  #connection: Connection | undefined
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
    // before anything is sent: a value that can't be written must not leave half a flush behind
    this.#values = values.map(serializeValue)
    this.#settings = gateStatement(settings, inlineTimeouts)
    this.#named = inlineTimeouts === undefined
    this.#setsIsolation = inlineTimeouts !== undefined && writes
    this.#inSettings = this.#setsIsolation ? 2 : 1
  }

  /** Called by pg when it is this query's turn. */
  submit(connection: Connection): null {
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
    if (this.#inSettings > 0 || this.#failure) return
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
    this.#inSettings--
  }

  handleError(err: Error): void {
    this.callback(err, [])
  }

  handleReadyForQuery(): void {
    this.callback(this.#failure ?? null, this.#rows)
  }
}

/** A value as text or bytes. Most are text already. Of an object that has no JSON pg makes undefined, and means null. */
export function serializeValue(value: unknown): string | Buffer | null {
  return typeof value === 'string' ? value : (prepareValue(value) ?? null)
}

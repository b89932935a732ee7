import pg from 'pg'
import { classifyFailure } from '../../db/gate/failures.ts'
import {
  type Field,
  type GateSettings,
  gateName,
  gateStatement,
  type QueryCallback,
  type QueryConfig,
  type Shape,
  serializeValue,
  shapeOf
} from '../../db/gate/gate-query.ts'
import { type PgConnection, socketOf } from '../../db/gate/pg-internals.ts'
import { createBatchWriter } from '../../db/gate/wire-format.ts'

/*
 * Takes the place of db/gate/wire.ts in a copy of the sources, for the comparison `pipeline`: keyed reads by pg's own
 * `pipeline` option. It leaves out the retry after a stale plan.
 *
 * It is as fast as that option allows: reads are collected as in ours, each is one write, and pg's query class, which makes
 * an event emitter and a result of each query, is not run.
 */

export type Read = {
  settings: GateSettings
  name: string
  text: string
  values: (string | Buffer | null)[]
  done: QueryCallback
  failedOpenings: number
}

export function createRead(settings: GateSettings, { name, text, values }: QueryConfig, done: QueryCallback): Read {
  return { settings, name, text, values: values.map(serializeValue), done, failedOpenings: 0 }
}

type Listener = { onData(): void; onIdle(): void; onConnectionError(): void }

const writer = createBatchWriter()

/**
 * The settings and one statement before one Sync. pg's pipeline refuses every class that does not extend pg.Query, but
 * needs nothing of it. So only the prototype is inherited, below.
 */
class PipelinedQuery {
  readonly name: string
  readonly text: string
  callback: QueryCallback
  readonly #read: Read
  readonly #shapes: Map<string, Shape>
  #shape: Shape | undefined
  #inSettings = true
  #rows: unknown[] = []

  constructor(read: Read, shapes: Map<string, Shape>, done: QueryCallback) {
    this.name = read.name
    this.text = read.text
    this.callback = done
    this.#read = read
    this.#shapes = shapes
    this.#shape = shapes.get(read.name)
  }

  submit(connection: PgConnection & { submittedNamedStatements: Record<string, string> }): null {
    const { name, text } = this
    const settings = gateStatement(this.#read.settings, undefined).values
    if (this.#shape) {
      writer.run(gateName, settings)
      writer.run(name, this.#read.values)
      connection.stream.write(writer.take())
      return null
    }
    connection.bind({ statement: gateName, values: settings })
    connection.execute({})
    if (!(name in connection.parsedStatements || name in connection.submittedNamedStatements)) {
      connection.parse({ name, text })
      connection.submittedNamedStatements[name] = text
    }
    connection.bind({ statement: name, values: this.#read.values })
    connection.describe({ type: 'P' })
    connection.execute({})
    connection.sync()
    return null
  }

  handleRowDescription({ fields }: { fields: Field[] }): void {
    this.#shape = shapeOf(fields)
    this.#shapes.set(this.name, this.#shape)
  }

  handleDataRow({ fields }: { fields: (string | null)[] }): void {
    if (this.#inSettings) throw new Error('a row that belongs to no read')
    const { names, readers } = this.#shape as Shape
    const row: Record<string, unknown> = {}
    for (let i = 0; i < names.length; i++) {
      const text = fields[i] as string | null
      row[names[i] as string] = text === null ? null : (readers[i] as Shape['readers'][number])(text)
    }
    this.#rows.push(row)
  }

  handleCommandComplete(): void {
    this.#inSettings = false
  }

  handleError(err: Error): void {
    this.callback(err, [])
  }

  handleReadyForQuery(): void {
    this.callback(null, this.#rows)
  }
}
Object.setPrototypeOf(PipelinedQuery.prototype, pg.Query.prototype)

export function createWire(client: pg.ClientBase, listener: Listener) {
  const stream = socketOf(client)
  const shapes = new Map<string, Shape>()
  let inFlight = 0
  // pipeline.ts opens the connection without the option
  Object.assign(client, { pipeline: true })
  stream.on('data', listener.onData)

  function end(read: Read, err: Error | null, rows: unknown[]): void {
    inFlight--
    if (err && classifyFailure(err) === 'connection') listener.onConnectionError()
    read.done(err, rows)
    // after pg has taken note that the connection is idle
    if (inFlight === 0) queueMicrotask(listener.onIdle)
  }

  return {
    send(reads: readonly Read[]): void {
      inFlight += reads.length
      stream.cork()
      for (const read of reads) {
        const query = new PipelinedQuery(read, shapes, (err, rows) => end(read, err, rows))
        client.query(query as unknown as pg.Submittable)
      }
      stream.uncork()
    },
    isIdle: () => inFlight === 0 && stream.writable,
    readsInFlight: () => inFlight,
    fail(): void {}
  }
}

export type Wire = ReturnType<typeof createWire>

import type pg from 'pg'
import { classifyFailure, isStalePlan } from './failures.ts'
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
} from './gate-query.ts'
import { Parser, serialize, socketOf } from './pg-internals.ts'
import { createBatchWriter, createFramer, messageType, readRow } from './wire-format.ts'

/** How many times a statement is prepared again for one read whose plan is stale after a schema change. */
const maxPreparations = 3
const unknownShape: Shape = { names: [], readers: [] }

/** A read that waits or is in flight. `done` is called once. */
export type Read = {
  settings: GateSettings
  name: string
  text: string
  values: (string | Buffer | null)[]
  done: QueryCallback
  shape: Shape
  rows: unknown[]
  failure: Error | null
  preparations: number
  /** How many attempts to open a connection failed while this read waited. */
  failedOpenings: number
}

/** Throws when a value can't be serialized. */
export function createRead(settings: GateSettings, { name, text, values }: QueryConfig, done: QueryCallback): Read {
  const asked = { settings, name, text, values: values.map(serializeValue), done }
  return { ...asked, shape: unknownShape, rows: [], failure: null, preparations: 0, failedOpenings: 0 }
}

/**
 * A prepared statement of this connection. `waiting`: the reads to send once PostgreSQL has prepared it, then
 * undefined.
 */
type Prepared = { shape: Shape; waiting: Read[] | undefined }

/** The reads sent before one Sync. `next` is the index of the read that is being answered. */
type Batch = { reads: Read[]; next: number; inSettings: boolean; retries: Read[] }
type Preparation = { prepares: string; statement: Prepared; failure: Error | undefined }

export type Wire = ReturnType<typeof createWire>

/** The events of a connection. */
type Listener = {
  /** Bytes arrived from PostgreSQL. */
  onData(): void
  /** The last exchange in flight has ended. */
  onIdle(): void
  /** PostgreSQL reported that it can't serve this connection any more. Called before the affected read gets the error. */
  onConnectionError(): void
}

/**
 * Sends batches of keyed reads over a connection that pg has opened. From here on pg only watches for the connection's end.
 * The settings must have been prepared (`prepareGate`).
 *
 * pg sends a Sync with every query and makes an object and an event of every message. Here the reads of a batch share one
 * write and one Sync, and answers are parsed in place: docs/performance.md says what that saves.
 *
 * The reads of a batch therefore share one implicit transaction. Every read is preceded by all of its settings, so that no
 * setting of another read is left when it runs; the Sync ends the last ones. Each read still sees what is committed when it
 * begins. When one fails, PostgreSQL skips the rest up to the Sync: those reads have not begun, and are sent again.
 */
export function createWire(client: pg.ClientBase, listener: Listener) {
  const stream = socketOf(client)
  const prepared = new Map<string, Prepared>()
  const exchanges: (Batch | Preparation)[] = []
  const writer = createBatchWriter()
  // for the rare messages, which need not be fast
  const parser = new Parser()
  let lossError: Error | undefined

  stream.removeAllListeners('data')
  stream.on('data', listener.onData)
  const frame = createFramer(receive)
  stream.on('data', (chunk) => {
    try {
      frame(chunk)
    } catch (cause) {
      // an unexpected or unreadable message: the answers after it could be matched to the wrong reads
      stream.destroy(new Error('Connection terminated: PostgreSQL was not understood', { cause }))
    }
  })

  // == sending =======================================================================================================

  function send(given: readonly Read[]): void {
    // reads that are resent may find the connection closing
    const closed = lossError ?? (stream.writable ? undefined : new Error('Connection terminated'))
    if (closed) {
      for (const { done } of given) done(closed, [])
      return
    }
    const reads: Read[] = []
    for (const read of given) {
      const statement = prepared.get(read.name) ?? prepare(read)
      if (statement.waiting) {
        statement.waiting.push(read)
        continue
      }
      read.shape = statement.shape
      writer.run(gateName, gateStatement(read.settings, undefined).values)
      writer.run(read.name, read.values)
      reads.push(read)
    }
    if (reads.length === 0) return
    exchanges.push({ reads, next: 0, inSettings: true, retries: [] })
    stream.write(writer.take())
  }

  /** Prepares a statement, with a Sync of its own so that an error in its text fails no batch. */
  function prepare({ name, text }: Read): Prepared {
    const statement: Prepared = { shape: unknownShape, waiting: [] }
    prepared.set(name, statement)
    exchanges.push({ prepares: name, statement, failure: undefined })
    // closing a name that PostgreSQL does not know is no error
    const messages = [serialize.close({ type: 'S', name }), serialize.parse({ name, text, types: [] })]
    stream.write(Buffer.concat([...messages, serialize.describe({ type: 'S', name }), serialize.sync()]))
    return statement
  }

  // == receiving =====================================================================================================

  function receive(bytes: Buffer, start: number, end: number): void {
    const exchange = exchanges[0]
    switch (bytes[start]) {
      case messageType.dataRow:
        handleDataRow(exchange as Batch, bytes, start)
        break
      case messageType.commandComplete:
      case messageType.emptyQueryResponse:
        handleCommandComplete(exchange as Batch)
        break
      case messageType.readyForQuery:
        exchanges.shift()
        if (exchange) handleReadyForQuery(exchange)
        break
      case messageType.errorResponse:
        parser.parse(bytes.subarray(start, end), (message) => handleError(exchange, message as unknown as Error))
        break
      case messageType.rowDescription:
        parser.parse(bytes.subarray(start, end), (message) => {
          ;(exchange as Preparation).statement.shape = shapeOf((message as unknown as { fields: Field[] }).fields)
        })
    }
  }

  function handleDataRow(batch: Batch, bytes: Buffer, start: number): void {
    if (batch.inSettings) throw new Error('a row that belongs to no read')
    const read = batch.reads[batch.next] as Read
    try {
      read.rows.push(readRow(bytes, start, read.shape))
    } catch (err) {
      read.failure = err as Error
    }
  }

  function handleCommandComplete(batch: Batch): void {
    if (batch.inSettings) {
      batch.inSettings = false
      return
    }
    const { done, rows, failure } = batch.reads[batch.next++] as Read
    batch.inSettings = true
    done(failure, rows)
  }

  function handleError(exchange: Batch | Preparation | undefined, err: Error): void {
    if (classifyFailure(err) === 'connection') listener.onConnectionError()
    // not about any exchange: the connection ends next, and `fail` then rejects all reads
    if (!exchange) return
    if ('prepares' in exchange) {
      exchange.failure = err
      return
    }
    const read = exchange.reads[exchange.next++]
    if (!read) return
    if (!isStalePlan(err) || read.preparations === maxPreparations) {
      read.done(err, [])
      return
    }
    read.preparations++
    read.rows = []
    // unless another read has already had the statement prepared again
    if (prepared.get(read.name)?.shape === read.shape) prepared.delete(read.name)
    exchange.retries.push(read)
  }

  function handleReadyForQuery(exchange: Batch | Preparation): void {
    if ('prepares' in exchange) finishPreparation(exchange)
    else if (exchange.next < exchange.reads.length || exchange.retries.length > 0) {
      send([...exchange.retries, ...exchange.reads.slice(exchange.next)])
    }
    if (exchanges.length === 0) listener.onIdle()
  }

  function finishPreparation({ prepares, statement, failure }: Preparation): void {
    const reads = statement.waiting ?? []
    statement.waiting = undefined
    if (!failure) {
      send(reads)
      return
    }
    prepared.delete(prepares)
    for (const { done } of reads) done(failure, [])
  }

  function readsInFlight(): Read[] {
    return exchanges.flatMap((exchange) =>
      'prepares' in exchange
        ? (exchange.statement.waiting ?? [])
        : [...exchange.retries, ...exchange.reads.slice(exchange.next)]
    )
  }

  return {
    /** Sends these reads as one batch; those whose statement is not prepared yet follow later. */
    send,
    /** Whether a batch can be sent now. False also while the connection is closing. */
    isIdle: () => exchanges.length === 0 && stream.writable,
    readsInFlight: () => readsInFlight().length,
    /** Fails all reads in flight. Call it when the connection has ended. */
    fail(err: Error): void {
      if (lossError) return
      lossError = err
      const reads = readsInFlight()
      exchanges.length = 0
      for (const { done } of reads) done(err, [])
    }
  }
}

import type { Socket } from 'node:net'
import type pg from 'pg'
import { serialize } from 'pg-protocol'
import { Parser } from 'pg-protocol/dist/parser.js'
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
import { createBatchWriter, createFramer, messageType, readRow } from './wire-format.ts'

/** How often a statement is prepared for one read, when the schema outgrows its plan. */
const maxPreparations = 3
const unknownShape: Shape = { names: [], readers: [] }

/** A read on its way. `done` is called once. */
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
  /** Attempts to open a connection that failed while it waited. */
  failedOpenings: number
}

/** Throws when a value can't be written. */
export function createRead(settings: GateSettings, { name, text, values }: QueryConfig, done: QueryCallback): Read {
  const asked = { settings, name, text, values: values.map(serializeValue), done }
  return { ...asked, shape: unknownShape, rows: [], failure: null, preparations: 0, failedOpenings: 0 }
}

/** A statement that has a name on this connection. `waiting`: who waits until PostgreSQL has it. */
type Prepared = { shape: Shape; waiting: Read[] | undefined }

/** What was sent before one Sync. Of the reads `next` is the one that is being answered. */
type Batch = { reads: Read[]; next: number; inSettings: boolean; retries: Read[] }
type Preparation = { prepares: string; statement: Prepared; failure: Error | undefined }

export type Wire = ReturnType<typeof createWire>

/** What a connection tells who uses it. */
type Listener = {
  /** PostgreSQL has said something. */
  onData(): void
  /** Nothing is under way any more. */
  onIdle(): void
  /** It has said that it will say nothing more, before whoever was told so is told. */
  onConnectionError(): void
}

/**
 * Keyed reads on a connection of pg's, which only watches over its end from here on. The settings must have been prepared
 * (`prepareGate`).
 *
 * pg sends a Sync with every query and makes an object and an event of every message. Here the reads of a batch share one
 * write and one Sync, and answers are read where they lie: docs/performance.md says what that saves.
 *
 * So the reads of a batch share one implicit transaction. In front of each stand its settings, all of them, so that none of
 * another's is left when it runs, and the Sync ends the last ones. Each sees what is committed when it begins, as ever. When
 * one fails, PostgreSQL skips what stands behind it up to the Sync: those have not begun, and are sent again.
 */
export function createWire(client: pg.ClientBase, listener: Listener) {
  const { stream } = (client as unknown as { connection: { stream: Socket } }).connection
  const prepared = new Map<string, Prepared>()
  const exchanges: (Batch | Preparation)[] = []
  const writer = createBatchWriter()
  // for what comes seldom
  const parser = new Parser()
  let lossError: Error | undefined

  stream.removeAllListeners('data')
  stream.on('data', listener.onData)
  const frame = createFramer(receive)
  stream.on('data', (chunk) => {
    try {
      frame(chunk)
    } catch (cause) {
      // an answer that nobody asked for, or can read: what comes behind it would be taken for something else
      stream.destroy(new Error('Connection terminated: PostgreSQL was not understood', { cause }))
    }
  })

  // == what is sent ==================================================================================================

  function send(given: readonly Read[]): void {
    // what is sent again may find it being closed
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

  /** Before a Sync of its own, so that no batch is broken by what is wrong with a text. */
  function prepare({ name, text }: Read): Prepared {
    const statement: Prepared = { shape: unknownShape, waiting: [] }
    prepared.set(name, statement)
    exchanges.push({ prepares: name, statement, failure: undefined })
    // PostgreSQL closes what it does not know without a word
    const messages = [serialize.close({ type: 'S', name }), serialize.parse({ name, text, types: [] })]
    stream.write(Buffer.concat([...messages, serialize.describe({ type: 'S', name }), serialize.sync()]))
    return statement
  }

  // == what is answered ==============================================================================================

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
    // outside of everything: the end of the connection follows, and is told to all
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
    // unless another read has had it prepared again since
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
    /** Sends reads, all of them together. */
    send,
    /** Takes reads. One that is being closed takes none any more. */
    isIdle: () => exchanges.length === 0 && stream.writable,
    readsInFlight: () => readsInFlight().length,
    /** To be called when the connection is gone: nobody waits on it any longer. */
    fail(err: Error): void {
      if (lossError) return
      lossError = err
      const reads = readsInFlight()
      exchanges.length = 0
      for (const { done } of reads) done(err, [])
    }
  }
}

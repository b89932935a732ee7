import pg from 'pg'
import { classifyFailure } from './failures.ts'
import {
  type Done,
  GateQuery,
  type GateSettings,
  prepareGate,
  type QueryConfig,
  startUpOptions,
  type TimeOuts
} from './gate-query.ts'

const connectTimeoutMs = 2000
/** With no answer for this long the connection counts as dead, whatever TCP thinks of it. */
const silenceLimitMs = 3000
const maxInFlight = 100
/** A slow statement stands in front of everybody behind it. */
export const keyedTimeOuts: TimeOuts = { statement_timeout: 1000, lock_timeout: 250 }

/** Thrown when no more may be in flight; the caller takes a connection from the pool instead. */
export class PipelineFull extends Error {}

/**
 * One connection down which keyed reads are sent without waiting for the answers to those before them.
 *
 * It reconnects by itself, on the next query after a loss. A query that was in flight when the connection broke rejects
 * with pg's error; being a read it may be asked again.
 */
export function createPipeline(connectionString: string, onError: (err: Error) => void) {
  let client: pg.Client | undefined
  let opening: Promise<pg.Client> | undefined
  let inFlight = 0
  let connects = 0
  let lastAnswer = 0
  let closed = false

  async function open(): Promise<pg.Client> {
    const fresh = new pg.Client({
      connectionString,
      pipeline: true,
      connectionTimeoutMillis: connectTimeoutMs,
      keepAlive: true,
      application_name: 'aggios-pipeline',
      options: startUpOptions(keyedTimeOuts)
    } as pg.ClientConfig)
    fresh.on('error', (err) => {
      if (client === fresh) client = undefined
      if (!closed) onError(err)
    })
    fresh.on('end', () => {
      if (client === fresh) client = undefined
    })
    await fresh.connect()
    // a database that falls silent now is not seen by the watch yet
    const patience = setTimeout(drop, connectTimeoutMs, fresh)
    try {
      await prepareGate(fresh)
    } catch (err) {
      await fresh.end().catch(() => {})
      throw err
    } finally {
      clearTimeout(patience)
    }
    gatherWrites(fresh)
    lastAnswer = Date.now()
    connects++
    client = fresh
    return fresh
  }

  async function connected(): Promise<pg.Client> {
    if (closed) throw new Error('the pipeline is closed')
    // everybody who finds the connection gone waits for the same attempt
    opening ??= open().finally(() => {
      opening = undefined
    })
    return opening
  }

  const watch = setInterval(() => {
    if (client && inFlight > 0 && Date.now() - lastAnswer > silenceLimitMs) drop(client)
  }, 500)
  watch.unref()

  function drop(dead: pg.Client): void {
    if (client === dead) client = undefined
    ;(dead as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy()
  }

  /**
   * Sends the statement behind its settings; `done` gets PipelineFull, or what pg or PostgreSQL say. A callback and no promise:
   * a keyed read is one promise in all, the gate's.
   */
  function query(settings: GateSettings, config: QueryConfig, done: Done): void {
    if (inFlight >= maxInFlight) {
      done(new PipelineFull(), [])
      return
    }
    if (inFlight++ === 0) lastAnswer = Date.now()
    const ended: Done = (err, rows) => {
      inFlight--
      done(err, rows)
    }
    if (client) send(client, settings, config, ended)
    else {
      connected().then(
        (fresh) => send(fresh, settings, config, ended),
        (err) => ended(err, [])
      )
    }
  }

  function send(current: pg.Client, settings: GateSettings, config: QueryConfig, done: Done): void {
    const answered: Done = (err, rows) => {
      lastAnswer = Date.now()
      // the connection is lost, though its socket may not know yet; or a plan that the schema has outgrown: start afresh
      if (err && (isStalePlan(err) || classifyFailure(err) === 'connection')) drop(current)
      done(err, rows)
    }
    current.query(new GateQuery(settings, config, answered) as unknown as pg.Submittable)
  }

  async function close(): Promise<void> {
    closed = true
    clearInterval(watch)
    await opening?.catch(() => {})
    await client?.end()
  }

  return { query, close, stats: () => ({ inFlight, connected: client !== undefined, connects }) }
}

type Connection = { _send(message: Buffer): void; stream: { writable: boolean; write(bytes: Buffer): void } }

/**
 * One write a turn of the event loop, however many queries it brought: a write costs more than the messages in it, here and
 * again where PostgreSQL reads them.
 */
function gatherWrites(client: pg.Client): void {
  const { connection } = client as unknown as { connection: Connection }
  let waiting: Buffer[] = []
  function flush(): void {
    const bytes = Buffer.concat(waiting)
    waiting = []
    if (connection.stream.writable) connection.stream.write(bytes)
  }
  connection._send = (message) => {
    if (waiting.length === 0) setImmediate(flush)
    waiting.push(message)
  }
}

export type Pipeline = ReturnType<typeof createPipeline>

/** PostgreSQL's "cached plan must not change result type" and "prepared statement does not exist". */
export function isStalePlan(err: unknown): boolean {
  const { code } = err as { code?: string }
  return code === '0A000' || code === '26000'
}

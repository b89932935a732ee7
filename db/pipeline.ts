import pg from 'pg'
import { classifyFailure } from './failures.ts'
import { GateQuery, type GateSettings, prepareGate } from './gate-query.ts'

const connectTimeoutMs = 2000
/** With no answer for this long the connection counts as dead, whatever TCP thinks of it. */
const silenceLimitMs = 3000
const maxInFlight = 100

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
      // a slow statement stands in front of everybody behind it
      options: '-c statement_timeout=1000 -c lock_timeout=250'
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
    lastAnswer = Date.now()
    connects++
    client = fresh
    return fresh
  }

  function connected(): pg.Client | Promise<pg.Client> {
    if (client) return client
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

  /** Sends the statement behind its settings. Rejects with PipelineFull, or with what pg or PostgreSQL say. */
  async function query(
    settings: GateSettings,
    config: { name: string; text: string; values: unknown[] }
  ): Promise<pg.QueryResult> {
    if (inFlight >= maxInFlight) throw new PipelineFull()
    if (inFlight++ === 0) lastAnswer = Date.now()
    try {
      const current = client ?? (await connected())
      return await new Promise((resolve, reject) => {
        const done = (err: Error | null, result: pg.QueryResult) => {
          lastAnswer = Date.now()
          if (!err) return resolve(result)
          // the connection is lost, though its socket may not know yet; or a plan that the schema has outgrown: start afresh
          if (isStalePlan(err) || classifyFailure(err) === 'connection') drop(current)
          reject(err)
        }
        current.query(new GateQuery(settings, config, done) as unknown as pg.Submittable)
      })
    } finally {
      inFlight--
    }
  }

  async function close(): Promise<void> {
    closed = true
    clearInterval(watch)
    await opening?.catch(() => {})
    await client?.end()
  }

  return { query, close, stats: () => ({ inFlight, connected: client !== undefined, connects }) }
}

export type Pipeline = ReturnType<typeof createPipeline>

/** PostgreSQL's "cached plan must not change result type" and "prepared statement does not exist". */
export function isStalePlan(err: unknown): boolean {
  const { code } = err as { code?: string }
  return code === '0A000' || code === '26000'
}

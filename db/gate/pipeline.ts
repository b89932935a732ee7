import type pg from 'pg'
import { ExpectedError } from '../../src/expected-error.ts'
import { createTurns } from '../../src/limits/round-robin-queue.ts'
import { Connection } from './connection.ts'
import { connectionTo, type Timeouts } from './connection-settings.ts'
import { type GateSettings, prepareGate, type QueryCallback, type QueryConfig } from './gate-query.ts'
import { createRead, createWire, type Read, type Wire } from './wire.ts'

export const connectTimeoutMs = 2000
/** With no answer for this long a connection counts as dead, whatever TCP thinks of it. */
export const silenceLimitMs = 3000
/** While another one serves, a connection that could not be opened is left alone for so long. */
export const reconnectDelayMs = 500
/** For each connection: reads that are under way, or wait. A bound of memory: so many take a tenth of a second. */
export const maxInFlight = 1000
/** Where nothing that waits is taken for so long, every connection has something slow to do. */
export const maxPauseMs = 250
/** Reads that are sent together at most. A slow one keeps the others of its batch waiting, and nobody else. */
const maxBatch = 16
/**
 * And no more than take so long at the pace of the batch before: PostgreSQL keeps the answers to itself until the last one, or
 * until they fill 8 KB, and must not be taken for dead meanwhile.
 */
const batchMs = 1000
/** A slow statement stands in front of others. */
export const keyedTimeouts: Timeouts = { statement_timeout: 1000, lock_timeout: 250 }

/** Thrown when no more may wait here; the caller takes a connection from the pool instead. */
export class PipelineFull extends ExpectedError {}

const pipelineClosed = () => new Error('the pipeline is closed')

/** One of the connections, and the attempt to open it while it is not. */
type Slot = {
  client: pg.Client | undefined
  wire: Wire | undefined
  opening: Promise<void> | undefined
  connects: number
  lastAnswer: number
  /** The batch that is under way: when it was sent, and of how many reads. */
  sentAt: number
  sent: number
  /** Not to be opened before. */
  reconnectAt: number
}

/**
 * A few connections for keyed reads, and one queue before them.
 *
 * A connection that is free takes all that waits, up to a batch. So a lone read leaves at once, and the more there are at a
 * time, the more of them share a write, a Sync and a wake-up on either side; while PostgreSQL works on one batch the next one
 * gathers. Where more wait than fit, tenants take turns.
 *
 * They reconnect by themselves, when there is something to read. A read that was in flight on a connection that broke rejects
 * with what was said last; it may be asked again.
 */
export function createPipeline(databaseUrl: string, count: number, onError: (err: Error) => void) {
  const slots: Slot[] = Array.from({ length: count }, () => ({
    ...{ client: undefined, wire: undefined, opening: undefined },
    ...{ connects: 0, lastAnswer: 0, sentAt: 0, sent: 0, reconnectAt: 0 }
  }))
  const waiting = createTurns<Read>()
  /** What was lost once, before all others. */
  const retries: Read[] = []
  /** When the first began to wait, or one was taken. */
  let lastTakenAt = 0
  /** Milliseconds for each read of the batch that was answered last. */
  let msPerRead = 0
  let inFlight = 0
  let scheduled = false
  let closed = false

  /** Asks; `done` gets PipelineFull, or what pg or PostgreSQL say. A callback: a keyed read is one promise in all, the gate's. */
  function query(settings: GateSettings, config: QueryConfig, done: QueryCallback): void {
    submit(settings, config, done, addWaiting)
  }

  /** The same for one whose connection was lost: sent by itself, so that nothing but its own time-outs decides how long it takes. */
  function retryQuery(settings: GateSettings, config: QueryConfig, done: QueryCallback): void {
    submit(settings, config, done, (read) => retries.push(read))
  }

  function submit(
    settings: GateSettings,
    config: QueryConfig,
    done: QueryCallback,
    enqueue: (read: Read) => void
  ): void {
    if (closed) {
      done(pipelineClosed(), [])
      return
    }
    const now = performance.now()
    if (waiting.size() === 0) lastTakenAt = now
    if (inFlight >= maxInFlight * count || now - lastTakenAt > maxPauseMs) {
      done(new PipelineFull(), [])
      return
    }
    const read = createRead(settings, config, (err, rows) => {
      inFlight--
      done(err, rows)
    })
    inFlight++
    enqueue(read)
    schedule()
  }

  const addWaiting = (read: Read) => waiting.add(read, read.settings.tenant_id ?? '')
  const queueLength = () => retries.length + waiting.size()

  /** At the end of this turn of the event loop, with all that it brings. */
  function schedule(): void {
    if (scheduled || queueLength() === 0) return
    scheduled = true
    setImmediate(() => {
      scheduled = false
      dispatch()
    })
  }

  function dispatch(): void {
    if (closed) return
    for (const slot of slots) {
      if (slot.wire) sendBatch(slot)
      else if (!slot.opening && (performance.now() >= slot.reconnectAt || isOnlyCandidate(slot)))
        slot.opening = open(slot)
    }
  }

  const isOnlyCandidate = (slot: Slot) => slots.every((other) => other === slot || !(other.wire || other.opening))

  function sendBatch(slot: Slot): void {
    if (queueLength() === 0 || !slot.wire?.isIdle()) return
    const limit = Math.min(maxBatch, Math.max(1, Math.floor(batchMs / msPerRead)))
    const reads = retries.length > 0 ? retries.splice(0, 1) : takeWaiting(limit)
    lastTakenAt = slot.lastAnswer = slot.sentAt = performance.now()
    slot.sent = reads.length
    slot.wire.send(reads)
  }

  function takeWaiting(limit: number): Read[] {
    const reads: Read[] = []
    while (reads.length < limit) {
      const read = waiting.take()
      if (!read) break
      reads.push(read)
    }
    return reads
  }

  /** Never rejects. Who has waited for as many attempts as there are connections, all in vain, waits no longer. */
  async function open(slot: Slot): Promise<void> {
    try {
      await connect(slot)
    } catch (err) {
      slot.reconnectAt = performance.now() + reconnectDelayMs
      if (slots.some(({ wire }) => wire)) onError(err as Error)
      else failAfterLastAttempt(err as Error)
    }
    slot.opening = undefined
    schedule()
  }

  function failAfterLastAttempt(err: Error): void {
    const hasAttemptsLeft = (read: Read) => ++read.failedOpenings < count
    for (const read of takeWaiting(waiting.size())) {
      if (hasAttemptsLeft(read)) addWaiting(read)
      else read.done(err, [])
    }
    for (const read of retries.splice(0)) {
      if (hasAttemptsLeft(read)) retries.push(read)
      else read.done(err, [])
    }
  }

  async function connect(slot: Slot): Promise<void> {
    const client = new Connection({
      ...connectionTo(databaseUrl, keyedTimeouts),
      connectionTimeoutMillis: connectTimeoutMs,
      keepAlive: true,
      application_name: 'aggios-pipeline'
    })
    let wire: Wire | undefined
    function handleLoss(err: Error): void {
      detach(slot, client)
      wire?.fail(err)
    }
    client.on('error', (err) => {
      handleLoss(err)
      if (!closed) onError(err)
    })
    client.on('end', () => handleLoss(new Error('Connection terminated')))
    await client.connect()
    // a database that falls silent now is not seen by the watch yet
    const timer = setTimeout(destroy, connectTimeoutMs, client)
    try {
      await prepareGate(client)
    } catch (err) {
      await client.end().catch(() => {})
      throw err
    } finally {
      clearTimeout(timer)
    }
    wire = createWire(client, {
      onData() {
        slot.lastAnswer = performance.now()
      },
      onIdle() {
        msPerRead = (performance.now() - slot.sentAt) / slot.sent
        sendBatch(slot)
      },
      onConnectionError: () => destroyConnection(slot, client)
    })
    slot.connects++
    slot.client = client
    slot.wire = wire
  }

  function detach(slot: Slot, client: pg.Client): void {
    if (slot.client !== client) return
    slot.client = undefined
    slot.wire = undefined
    if (closed) return
    // another one that has said nothing because nobody asked is no better way to the same place
    for (const other of slots) if (other.client && other.wire?.isIdle()) destroyConnection(other, other.client)
    schedule()
  }

  function destroyConnection(slot: Slot, client: pg.Client): void {
    detach(slot, client)
    destroy(client)
  }

  const watch = setInterval(() => {
    for (const slot of slots) {
      const { client, wire, lastAnswer } = slot
      if (!client || !wire || wire.isIdle() || performance.now() - lastAnswer <= silenceLimitMs) continue
      msPerRead = silenceLimitMs
      destroyConnection(slot, client)
    }
  }, 500)
  watch.unref()

  /** What is under way is answered; what waits, would have to be sent again or is asked from now on is refused. */
  async function close(): Promise<void> {
    closed = true
    clearInterval(watch)
    for (const read of [...retries.splice(0), ...takeWaiting(waiting.size())]) read.done(pipelineClosed(), [])
    await Promise.all(
      slots.map(async (slot) => {
        await slot.opening
        if (slot.client) await endWithTimeout(slot.client)
      })
    )
  }

  return {
    query,
    retryQuery,
    close,
    /** Reads that no connection has taken yet. */
    waiting: queueLength,
    stats: () =>
      slots.map(({ wire, connects }) => ({
        in_flight: wire?.readsInFlight() ?? 0,
        connected: wire !== undefined,
        connects
      }))
  }
}

export type Pipeline = ReturnType<typeof createPipeline>

/** Says good-bye. Who does not answer that is left. */
async function endWithTimeout(client: pg.Client): Promise<void> {
  const timer = setTimeout(destroy, silenceLimitMs, client)
  await client.end()
  clearTimeout(timer)
}

/** Without a word to the other side, which may not be there. Whoever waits is told when the socket is closed. */
function destroy(client: pg.Client): void {
  ;(client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy()
}

import type pg from 'pg'
import { ExpectedError } from '../../src/expected-error.ts'
import { createRoundRobinQueue } from '../../src/limits/round-robin-queue.ts'
import { Connection } from './connection.ts'
import { connectionTo, type Timeouts } from './connection-settings.ts'
import { type GateSettings, prepareGate, type QueryCallback, type QueryConfig } from './gate-query.ts'
import { socketOf } from './pg-internals.ts'
import { createRead, createWire, type Read, type Wire } from './wire.ts'

export const connectTimeoutMs = 2000
/** A connection with a batch in flight and no answer for this long is dead, even if TCP still reports it open. */
export const silenceLimitMs = 3000
/** How long to wait after a failed connection attempt before the next, while another connection is open or opening. */
export const reconnectDelayMs = 500
/**
 * The most reads per connection, waiting and in flight together. It bounds memory; this many take a tenth of a second.
 */
export const maxInFlight = 1000
/** A queue that has not moved for this long: every connection is busy with a slow batch, so new reads go to the pool. */
export const maxPauseMs = 250
/** The most reads in one batch. A slow read delays the other reads of its batch only. */
const maxBatch = 16
/**
 * The longest estimated time of one batch, by the speed of the batch before. PostgreSQL holds answers back until the last one
 * or until they fill 8 KB, and must not be taken for dead in the meantime.
 */
const batchMs = 1000
/** Short, because the reads behind a slow statement wait for it. */
export const keyedTimeouts: Timeouts = { statement_timeout: 1000, lock_timeout: 250 }

/** The queue is full or stalled; the caller takes a connection from the pool instead. */
export class PipelineFull extends ExpectedError {}

const pipelineClosed = () => new Error('the pipeline is closed')

/** One connection of the pipeline, or the attempt to open it. */
type Slot = {
  client: pg.Client | undefined
  wire: Wire | undefined
  opening: Promise<void> | undefined
  connects: number
  lastAnswer: number
  /** When the batch in flight was sent, and how many reads it has. */
  sentAt: number
  sent: number
  /** The earliest time of the next connection attempt. */
  reconnectAt: number
}

/**
 * A few connections for keyed reads, and one queue in front of them.
 *
 * An idle connection takes everything in the queue, up to one batch. So a single read is sent at once, and under load many
 * reads share one write, one Sync and one wake-up on each side. While PostgreSQL works on one batch, the next one collects.
 * The queue is round-robin over tenants.
 *
 * Connections reconnect by themselves when there is something to read. When a connection breaks, the reads in flight on it
 * fail with its error; the caller may retry them.
 */
export function createPipeline(databaseUrl: string, count: number, onError: (err: Error) => void) {
  const slots: Slot[] = Array.from({ length: count }, () => ({
    ...{ client: undefined, wire: undefined, opening: undefined },
    ...{ connects: 0, lastAnswer: 0, sentAt: 0, sent: 0, reconnectAt: 0 }
  }))
  const waiting = createRoundRobinQueue<Read>()
  /** Reads whose connection broke once; they are sent before all others. */
  const retries: Read[] = []
  /** When the queue last moved: a read was taken, or one was added to the empty queue. */
  let lastTakenAt = 0
  /** Milliseconds per read in the batch that was answered last. */
  let msPerRead = 0
  let inFlight = 0
  let scheduled = false
  let closed = false

  /**
   * Queues a read. `done` gets the rows, or PipelineFull, or the error of pg or PostgreSQL. It is a callback so that a keyed
   * read costs one promise in all, the gate's.
   */
  function query(settings: GateSettings, config: QueryConfig, done: QueryCallback): void {
    submit(settings, config, done, addWaiting)
  }

  /** Queues a read whose connection broke. It is sent alone, so that only its own timeouts bound how long it takes. */
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

  /** Dispatches at the end of this iteration of the event loop, so that all reads of the iteration share a batch. */
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

  /** Opens a slot's connection. Never rejects: a failure is logged, or counted for the waiting reads if none is open. */
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

  /**
   * A read fails after one failed connection attempt per slot, so that an unreachable database answers in bounded time.
   */
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
    // the watch does not cover this connection yet, so a database that stops answering now needs a timer of its own
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
    // drop idle connections too: a connection that has been quiet may be as dead as the one that just failed
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

  /** Waits for the reads in flight and fails all others: those in the queue, those to be resent, and any new ones. */
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
    /** How many reads no connection has taken yet. */
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

/** Closes a connection gracefully, or destroys its socket when the server does not close it in time. */
async function endWithTimeout(client: pg.Client): Promise<void> {
  const timer = setTimeout(destroy, silenceLimitMs, client)
  await client.end()
  clearTimeout(timer)
}

/** Destroys the socket without telling the server, which may be gone. The reads in flight fail when the socket closes. */
function destroy(client: pg.Client): void {
  socketOf(client).destroy()
}

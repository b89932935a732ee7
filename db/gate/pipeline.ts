import type pg from 'pg'
import { ExpectedError } from '../../src/expected-error.ts'
import { createRoundRobinQueue } from '../../src/limits/round-robin-queue.ts'
import { Connection } from './connection.ts'
import { connectionTo, type TimeOuts } from './connection-settings.ts'
import { type Done, type GateSettings, prepareGate, type QueryConfig } from './gate-query.ts'
import { createRead, type Read, takeOver, type Wire } from './wire.ts'

export const connectTimeoutMs = 2000
/** With no answer for this long a connection counts as dead, whatever TCP thinks of it. */
export const silenceLimitMs = 3000
/** While another one serves, a connection that could not be opened is left alone for so long. */
export const restMs = 500
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
export const keyedTimeOuts: TimeOuts = { statement_timeout: 1000, lock_timeout: 250 }

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
  restsUntil: number
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
    ...{ connects: 0, lastAnswer: 0, sentAt: 0, sent: 0, restsUntil: 0 }
  }))
  const waiting = createRoundRobinQueue<Read>()
  /** What was lost once, before all others. */
  const lost: Read[] = []
  /** When the first began to wait, or one was taken. */
  let movedAt = 0
  /** Milliseconds for each read of the batch that was answered last. */
  let pace = 0
  let inFlight = 0
  let scheduled = false
  let closed = false

  /** Asks; `done` gets PipelineFull, or what pg or PostgreSQL say. A callback: a keyed read is one promise in all, the gate's. */
  function query(settings: GateSettings, config: QueryConfig, done: Done): void {
    ask(settings, config, done, wait)
  }

  /** The same for one whose connection was lost: sent by itself, so that nothing but its own time-outs decides how long it takes. */
  function queryAgain(settings: GateSettings, config: QueryConfig, done: Done): void {
    ask(settings, config, done, (read) => lost.push(read))
  }

  function ask(settings: GateSettings, config: QueryConfig, done: Done, enqueue: (read: Read) => void): void {
    if (closed) {
      done(pipelineClosed(), [])
      return
    }
    const now = performance.now()
    if (waiting.size() === 0) movedAt = now
    if (inFlight >= maxInFlight * count || now - movedAt > maxPauseMs) {
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

  const wait = (read: Read) => waiting.add(read, read.settings.tenant_id ?? '')
  const size = () => lost.length + waiting.size()

  /** At the end of this turn of the event loop, with all that it brings. */
  function schedule(): void {
    if (scheduled || size() === 0) return
    scheduled = true
    setImmediate(() => {
      scheduled = false
      dispatch()
    })
  }

  function dispatch(): void {
    if (closed) return
    for (const slot of slots) {
      if (slot.wire) give(slot)
      else if (!slot.opening && (performance.now() >= slot.restsUntil || isAlone(slot))) slot.opening = open(slot)
    }
  }

  const isAlone = (slot: Slot) => slots.every((other) => other === slot || !(other.wire || other.opening))

  function give(slot: Slot): void {
    if (size() === 0 || !slot.wire?.isIdle()) return
    const most = Math.min(maxBatch, Math.max(1, Math.floor(batchMs / pace)))
    const reads = lost.length > 0 ? lost.splice(0, 1) : takeWaiting(most)
    movedAt = slot.lastAnswer = slot.sentAt = performance.now()
    slot.sent = reads.length
    slot.wire.send(reads)
  }

  function takeWaiting(most: number): Read[] {
    const reads: Read[] = []
    while (reads.length < most) {
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
      slot.restsUntil = performance.now() + restMs
      if (slots.some(({ wire }) => wire)) onError(err as Error)
      else refuse(err as Error)
    }
    slot.opening = undefined
    schedule()
  }

  function refuse(err: Error): void {
    const stays = (read: Read) => ++read.failedOpenings < count
    for (const read of takeWaiting(waiting.size())) {
      if (stays(read)) wait(read)
      else read.done(err, [])
    }
    for (const read of lost.splice(0)) {
      if (stays(read)) lost.push(read)
      else read.done(err, [])
    }
  }

  async function connect(slot: Slot): Promise<void> {
    const client = new Connection({
      ...connectionTo(databaseUrl, keyedTimeOuts),
      connectionTimeoutMillis: connectTimeoutMs,
      keepAlive: true,
      application_name: 'aggios-pipeline'
    })
    let wire: Wire | undefined
    function lose(err: Error): void {
      leave(slot, client)
      wire?.fail(err)
    }
    client.on('error', (err) => {
      lose(err)
      if (!closed) onError(err)
    })
    client.on('end', () => lose(new Error('Connection terminated')))
    await client.connect()
    // a database that falls silent now is not seen by the watch yet
    const patience = setTimeout(destroy, connectTimeoutMs, client)
    try {
      await prepareGate(client)
    } catch (err) {
      await client.end().catch(() => {})
      throw err
    } finally {
      clearTimeout(patience)
    }
    wire = takeOver(client, {
      onAnswer() {
        slot.lastAnswer = performance.now()
      },
      onIdle() {
        pace = (performance.now() - slot.sentAt) / slot.sent
        give(slot)
      },
      onBroken: () => drop(slot, client)
    })
    slot.connects++
    slot.client = client
    slot.wire = wire
  }

  function leave(slot: Slot, client: pg.Client): void {
    if (slot.client !== client) return
    slot.client = undefined
    slot.wire = undefined
    if (closed) return
    // another one that has said nothing because nobody asked is no better way to the same place
    for (const other of slots) if (other.client && other.wire?.isIdle()) drop(other, other.client)
    schedule()
  }

  function drop(slot: Slot, client: pg.Client): void {
    leave(slot, client)
    destroy(client)
  }

  const watch = setInterval(() => {
    for (const slot of slots) {
      const { client, wire, lastAnswer } = slot
      if (!client || !wire || wire.isIdle() || performance.now() - lastAnswer <= silenceLimitMs) continue
      pace = silenceLimitMs
      drop(slot, client)
    }
  }, 500)
  watch.unref()

  /** What is under way is answered; what waits, would have to be sent again or is asked from now on is refused. */
  async function close(): Promise<void> {
    closed = true
    clearInterval(watch)
    for (const read of [...lost.splice(0), ...takeWaiting(waiting.size())]) read.done(pipelineClosed(), [])
    await Promise.all(
      slots.map(async (slot) => {
        await slot.opening
        if (slot.client) await end(slot.client)
      })
    )
  }

  return {
    query,
    queryAgain,
    close,
    /** Reads that no connection has taken yet. */
    waiting: size,
    stats: () =>
      slots.map(({ wire, connects }) => ({ in_flight: wire?.underWay() ?? 0, connected: wire !== undefined, connects }))
  }
}

export type Pipeline = ReturnType<typeof createPipeline>

/** Says good-bye. Who does not answer that is left. */
async function end(client: pg.Client): Promise<void> {
  const patience = setTimeout(destroy, silenceLimitMs, client)
  await client.end()
  clearTimeout(patience)
}

/** Without a word to the other side, which may not be there. Whoever waits is told when the socket is closed. */
function destroy(client: pg.Client): void {
  ;(client as unknown as { connection: { stream: { destroy(): void } } }).connection.stream.destroy()
}

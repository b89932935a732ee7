import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Owner } from './harness.ts'

/** `upstream` is from the client to the server, `downstream` from the server to the client. */
export type Direction = 'upstream' | 'downstream'

/** A network fault between client and server. The names are those of toxiproxy, if it has the fault. */
export type Toxic =
  /** Delays every chunk by so many milliseconds, and up to `jitter` more. */
  | { type: 'latency'; latency: number; jitter?: number; direction?: Direction }
  /** Passes so many bytes a second on each connection. */
  | { type: 'bandwidth'; rate: number; direction?: Direction }
  /** Accepts connections and drops every byte, also those under way. Neither side sees the other one's end. */
  | { type: 'blackhole' }
  /** Breaks all connections and refuses new ones. */
  | { type: 'refuse' }
  /** Delivers so many bytes, and then breaks the connection. */
  | { type: 'reset_after'; bytes: number; direction: Direction }
  /** Delivers so many bytes, and then ends this direction (FIN). The other direction goes on. */
  | { type: 'half_close'; bytes: number; direction: Direction }
  /**
   * Breaks the connection where these bytes begin. The bytes before them are delivered. `after`: only a connection on which
   * the client has sent this text under this fault.
   */
  | { type: 'cut_on'; pattern: string; direction: Direction; times?: number; after?: string }

/** The bytes that one direction of a connection has passed under the present fault. */
type Progress = { passed: number; tail: Buffer }

/** `sent`: the toxics whose text (`after`) the client has sent on this connection. */
type Pair = { near: Socket; far: Socket; sent: WeakSet<Toxic> }

/**
 * A TCP proxy in front of a server on loopback, which can add network faults. One fault at a time is active, on
 * existing and new connections.
 */
export type FaultProxy = {
  port: number
  /** The same URL, through the proxy. */
  through(url: string): string
  /** Connects to another port from now on. Breaks the existing connections. */
  lead(port: number): void
  add(toxic: Toxic): Promise<void>
  /** Removes the fault. Connections that lost bytes in a black hole break. */
  clear(): Promise<void>
  /** Breaks every connection. New ones are accepted. */
  reset(): void
  /** How often a connection was broken or closed by `reset_after`, `half_close` or `cut_on`. */
  hits(): number
}

export async function startFaultProxy(t: Owner, target: number): Promise<FaultProxy> {
  const pairs = new Set<Pair>()
  let upstreamPort = target
  let toxic: Toxic | undefined
  let hits = 0

  const server: Server = createServer({ allowHalfOpen: true }, (near) => {
    const far = connect({ port: upstreamPort, host: '127.0.0.1', allowHalfOpen: true })
    const pair: Pair = { near, far, sent: new WeakSet() }
    pairs.add(pair)
    carry(pair, near, far, 'upstream')
    carry(pair, far, near, 'downstream')
    for (const socket of [near, far]) {
      socket.setNoDelay()
      socket.on('error', () => {})
      socket.on('close', () => {
        // a black hole also hides that a connection has closed
        if (toxic?.type !== 'blackhole') breakPair(pair)
      })
    }
  })

  function breakPair(pair: Pair): void {
    pairs.delete(pair)
    pair.near.resetAndDestroy()
    pair.far.resetAndDestroy()
  }

  /** Passes one chunk at a time: chunks stay in order, and a slow receiver slows the sender down. */
  function carry(pair: Pair, from: Socket, to: Socket, direction: Direction): void {
    const progress: Progress = { passed: 0, tail: Buffer.alloc(0) }
    void (async () => {
      for await (const chunk of from) {
        if (to.destroyed) return
        await pass(pair, to, direction, progress, chunk)
      }
      if (toxic?.type !== 'blackhole') to.end()
    })().catch(() => {})
  }

  async function pass(pair: Pair, to: Socket, direction: Direction, progress: Progress, chunk: Buffer): Promise<void> {
    const current = toxic
    if (current?.type === 'cut_on' && current.after !== undefined) {
      if (direction === 'upstream' && chunk.includes(current.after)) pair.sent.add(current)
      if (!pair.sent.has(current)) return write(to, chunk)
    }
    if (current === undefined || ('direction' in current && current.direction && current.direction !== direction)) {
      return write(to, chunk)
    }
    switch (current.type) {
      case 'latency':
        await sleep(current.latency + Math.random() * (current.jitter ?? 0))
        return write(to, chunk)
      case 'bandwidth':
        await sleep((chunk.length / current.rate) * 1000)
        return write(to, chunk)
      case 'blackhole':
      case 'refuse':
        return
      case 'reset_after':
      case 'half_close': {
        const rest = chunk.subarray(0, Math.max(0, current.bytes - progress.passed))
        const reached = progress.passed + chunk.length >= current.bytes
        progress.passed += chunk.length
        if (rest.length > 0) await write(to, rest)
        if (!reached || to.writableEnded) return
        hits++
        if (current.type === 'half_close') to.end()
        else end(pair)
        return
      }
      case 'cut_on': {
        const seen = Buffer.concat([progress.tail, chunk])
        const at = seen.indexOf(current.pattern, 0, 'latin1')
        progress.tail = Buffer.from(seen.subarray(Math.max(0, seen.length - current.pattern.length + 1)))
        if (at === -1) return write(to, chunk)
        // if the pattern began in the chunk before, that part has been sent already
        const before = chunk.subarray(0, Math.max(0, at - (seen.length - chunk.length)))
        if (before.length > 0) await write(to, before)
        hits++
        if (current.times !== undefined && --current.times === 0 && toxic === current) toxic = undefined
        end(pair)
      }
    }
  }

  /**
   * Ends a connection after the written bytes are delivered. A reset could discard bytes that the receiver has not
   * read.
   */
  function end(pair: Pair): void {
    pairs.delete(pair)
    pair.near.destroySoon()
    pair.far.destroySoon()
  }

  async function write(to: Socket, chunk: Buffer): Promise<void> {
    if (to.destroyed || to.writableEnded) return
    if (!to.write(chunk)) await Promise.race([once(to, 'drain'), once(to, 'close')])
  }

  async function listen(port: number): Promise<void> {
    server.listen(port, '127.0.0.1')
    await once(server, 'listening')
  }

  function reset(): void {
    for (const pair of pairs) breakPair(pair)
  }

  await listen(0)
  const { port } = server.address() as AddressInfo
  t.teardown(() => {
    if (server.listening) server.close()
    reset()
  })
  return {
    port,
    through(url) {
      const other = new URL(url)
      other.hostname = '127.0.0.1'
      other.port = String(port)
      return other.href
    },
    lead(next) {
      upstreamPort = next
      reset()
    },
    async add(next) {
      // a copy, because `times` is counted down
      toxic = { ...next }
      if (next.type !== 'refuse') return
      const closed = once(server, 'close')
      server.close()
      reset()
      await closed
    },
    async clear() {
      const swallowed = toxic?.type === 'blackhole'
      toxic = undefined
      if (swallowed) reset()
      if (!server.listening) await listen(port)
    },
    reset,
    hits: () => hits
  }
}

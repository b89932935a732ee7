import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Owner } from './harness.ts'

/** `upstream` is from the client to the server, `downstream` from the server to the client. */
export type Direction = 'upstream' | 'downstream'

/** What can be wrong with the way to a server. The names are those of toxiproxy where it has one. */
export type Toxic =
  /** Every piece arrives this many milliseconds later, and up to `jitter` more. */
  | { type: 'latency'; latency: number; jitter?: number; direction?: Direction }
  /** So many bytes a second, on each connection. */
  | { type: 'bandwidth'; rate: number; direction?: Direction }
  /** Connections are accepted; nothing that is sent arrives, and nobody is told of an end. What was under way is lost. */
  | { type: 'blackhole' }
  /** Connections are refused, and those that there are break. */
  | { type: 'refuse' }
  /** A connection breaks once so many bytes have passed; they are delivered. */
  | { type: 'reset_after'; bytes: number; direction: Direction }
  /** Once so many bytes have passed the receiver sees an orderly end; the other direction goes on. */
  | { type: 'half_close'; bytes: number; direction: Direction }
  /** A connection breaks where these bytes begin: what stands before them is delivered, they do not arrive whole. */
  | { type: 'cut_on'; pattern: string; direction: Direction; times?: number }

/** What one direction of a connection has seen of its toxic. */
type Progress = { passed: number; tail: Buffer }

type Pair = { near: Socket; far: Socket }

/**
 * A way to a server on loopback that can be made bad while it is used. One toxic is in force at a time, on the connections
 * that there are and on new ones.
 */
export type FaultProxy = {
  port: number
  /** The same URL by way of the proxy. */
  through(url: string): string
  /** From now on new connections lead there. Those that there are break: they led somewhere else. */
  lead(port: number): void
  add(toxic: Toxic): Promise<void>
  /** As if nothing had been. Connections whose bytes were swallowed break. */
  clear(): Promise<void>
  /** Breaks every connection; new ones are welcome. */
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
    const pair = { near, far }
    pairs.add(pair)
    carry(pair, near, far, 'upstream')
    carry(pair, far, near, 'downstream')
    for (const socket of [near, far]) {
      socket.setNoDelay()
      socket.on('error', () => {})
      socket.on('close', () => {
        // a network that swallows everything swallows this too
        if (toxic?.type !== 'blackhole') breakPair(pair)
      })
    }
  })

  function breakPair(pair: Pair): void {
    pairs.delete(pair)
    pair.near.resetAndDestroy()
    pair.far.resetAndDestroy()
  }

  /** One piece at a time, so that nothing overtakes, and what is slow slows the sender down. */
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
        // of a pattern that began in the piece before, that part is on its way already
        const before = chunk.subarray(0, Math.max(0, at - (seen.length - chunk.length)))
        if (before.length > 0) await write(to, before)
        hits++
        if (current.times !== undefined && --current.times === 0 && toxic === current) toxic = undefined
        end(pair)
      }
    }
  }

  /** What was delivered before stays delivered: a reset would take it back out of the receiver's hands. */
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
      // counted down as it strikes, and the caller's stays as it is
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

import type { Socket } from 'node:net'
import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { requestTimeout } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** Milliseconds that a body has to arrive whole. */
    bodyTimeoutMs: number
  }
  interface FastifyContextConfig {
    /** Its body is a file: as long as bytes keep coming it may take any time. */
    upload?: boolean
  }
}

const bodyTimeoutMs = 30_000
/** For so long, and up to so many bytes, a body that nobody wants is read on, so that its sender comes to read the reply. */
const lingerMs = 3_000
const lingerBytes = 8 * 1024 * 1024

/** What becomes of a body that comes slowly, and of one that is still coming when its request is answered. */
export default fp(
  async (app) => {
    app.decorate('bodyTimeoutMs', bodyTimeoutMs)
    const closing = new WeakSet<Socket>()

    app.addHook('onRequest', (request, reply, done) => {
      // nothing that comes after a reply that closes the connection may be done (RFC 9112, 9.6)
      if (closing.has(request.raw.socket)) {
        reply.hijack()
        return
      }
      const { headers } = request.raw
      const hasBody = headers['content-length'] !== undefined || headers['transfer-encoding'] !== undefined
      if (hasBody && !request.routeOptions.config?.upload) watch(request, reply, app.bodyTimeoutMs)
      done()
    })

    app.addHook('onSend', (request, reply, _payload, done) => {
      if (isComing(request)) {
        reply.header('connection', 'close')
        closing.add(request.raw.socket)
        linger(request)
      }
      done()
    })
  },
  { name: 'request-body' }
)

function watch(request: FastifyRequest, reply: FastifyReply, patienceMs: number): void {
  const { raw } = request
  const timer = setTimeout(() => {
    if (raw.complete || reply.sent) return
    reply.send(requestTimeout())
  }, patienceMs)
  timer.unref()
  raw.once('end', () => clearTimeout(timer))
  raw.once('close', () => clearTimeout(timer))
}

function isComing({ raw }: FastifyRequest): boolean {
  const { headers } = raw
  const hasBody = Number(headers['content-length'] ?? 0) > 0 || headers['transfer-encoding'] !== undefined
  return hasBody && raw.complete === false
}

/**
 * Lets the sender of a body that is still coming read the reply. A connection that is closed with bytes unread is reset, and a reset
 * overtakes the reply. So once that is written only our side is ended, and what comes is read and forgotten, up to a limit and then no
 * more, until the body has come, the sender closes, or it takes too long.
 */
function linger({ raw }: FastifyRequest): void {
  const { socket } = raw
  let taken = 0
  raw.unpipe()
  raw.on('data', (chunk: Buffer) => {
    taken += chunk.length
    if (taken > lingerBytes) raw.pause()
  })
  raw.resume()
  const close = socket.destroySoon.bind(socket)
  // by this Node closes a connection when its last reply is written
  socket.destroySoon = () => {
    if (raw.complete) return close()
    socket.end()
    raw.once('end', close)
    const timer = setTimeout(() => socket.destroy(), lingerMs)
    timer.unref()
    socket.once('close', () => clearTimeout(timer))
  }
}

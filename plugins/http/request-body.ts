import type { Socket } from 'node:net'
import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { requestTimeout } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyInstance {
    /** The time in which a body must arrive completely. */
    bodyTimeoutMs: number
  }
  interface FastifyContextConfig {
    /**
     * The body of the route is a file, which may take any time. Minimum rates apply instead
     * (src/files/upload-slots.ts).
     */
    upload?: boolean
  }
}

const bodyTimeoutMs = 30_000
/** The time and the bytes up to which an unwanted body is read on, so that its sender reads the reply. */
const lingerMs = 3_000
const lingerBytes = 8 * 1024 * 1024

/** Limits the time in which a body arrives, and reads on when a request is answered before its body has arrived. */
export default fp(
  async (app) => {
    app.decorate('bodyTimeoutMs', bodyTimeoutMs)
    const closing = new WeakSet<Socket>()

    app.addHook('onRequest', (request, reply, done) => {
      // requests after a reply that closes the connection must not be processed (RFC 9112, 9.6)
      if (closing.has(request.raw.socket)) {
        reply.hijack()
        return
      }
      const { headers } = request.raw
      const hasBody = headers['content-length'] !== undefined || headers['transfer-encoding'] !== undefined
      if (hasBody && !request.routeOptions.config?.upload) limitTime(request, reply, app.bodyTimeoutMs)
      done()
    })

    app.addHook('onSend', (request, reply, _payload, done) => {
      if (isIncomplete(request)) {
        reply.header('connection', 'close')
        closing.add(request.raw.socket)
        linger(request)
      }
      done()
    })
  },
  { name: 'request-body' }
)

/** Answers with `request_timeout` when the body has not arrived completely in time. */
function limitTime(request: FastifyRequest, reply: FastifyReply, timeoutMs: number): void {
  const { raw } = request
  const timer = setTimeout(() => {
    if (raw.complete || reply.sent) return
    reply.send(requestTimeout())
  }, timeoutMs)
  timer.unref()
  raw.once('end', () => clearTimeout(timer))
  raw.once('close', () => clearTimeout(timer))
}

/** True when a body was announced and has not arrived completely. */
function isIncomplete({ raw }: FastifyRequest): boolean {
  const { headers } = raw
  const hasBody = Number(headers['content-length'] ?? 0) > 0 || headers['transfer-encoding'] !== undefined
  return hasBody && raw.complete === false
}

/**
 * Lets the sender of an incomplete body read the reply. A connection that is closed with unread bytes is reset, and a
 * reset can destroy the reply on its way. So only our side is ended after the reply, and the rest of the body is read
 * and discarded, up to a limit. The connection closes when the body is complete, when the sender closes it, or after
 * `lingerMs`.
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
  // Node calls this method to close a connection after its last reply
  socket.destroySoon = () => {
    if (raw.complete) return close()
    socket.end()
    raw.once('end', close)
    const timer = setTimeout(() => socket.destroy(), lingerMs)
    timer.unref()
    socket.once('close', () => clearTimeout(timer))
  }
}

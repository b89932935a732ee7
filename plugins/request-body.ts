import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { requestTimeout } from '../src/errors.ts'

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
/** For so long a body that nobody wants is read on, so that its sender comes to read the reply. */
const lingerMs = 3_000

/** What becomes of a body that comes slowly, and of one that is still coming when its request is answered. */
export default fp(
  async (app) => {
    app.decorate('bodyTimeoutMs', bodyTimeoutMs)

    app.addHook('onRequest', (request, reply, done) => {
      const { headers } = request.raw
      const hasBody = headers['content-length'] !== undefined || headers['transfer-encoding'] !== undefined
      if (hasBody && !request.routeOptions.config?.upload) watch(request, reply, app.bodyTimeoutMs)
      done()
    })

    app.addHook('onSend', (request, reply, _payload, done) => {
      if (isComing(request)) {
        reply.header('connection', 'close')
        reply.raw.once('finish', () => linger(request))
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
    // what still comes is never handed to a handler
    reply.raw.once('finish', () => raw.socket.destroySoon())
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

/** A connection that is closed with bytes unread is reset, and a reset may overtake the reply. */
function linger({ raw }: FastifyRequest): void {
  raw.unpipe()
  raw.resume()
  const timer = setTimeout(() => raw.socket.destroy(), lingerMs)
  timer.unref()
  raw.once('close', () => clearTimeout(timer))
}

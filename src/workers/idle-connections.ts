import type { Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

/**
 * Keeps `closeIdleConnections`, and with it `close`, from cutting off replies. Node takes a connection for idle as soon as its
 * reply is written, though much of that may still wait in memory for a client that reads slowly. Here idle connections are
 * closed once no such reply is on its way: call it again.
 */
export function spareReplies(server: Server): void {
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  const closeIdle = server.closeIdleConnections.bind(server)
  server.closeIdleConnections = () => {
    if (![...sockets].some(isSending)) closeIdle()
  }
}

function isSending(socket: Socket): boolean {
  const { _httpMessage: reply } = socket as { _httpMessage?: ServerResponse | null }
  return reply?.writableEnded === true && !reply.writableFinished
}

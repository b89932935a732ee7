import type { Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

export type Connections = {
  open(): number
  /** Whether any of them has a request that is not answered yet. */
  areBusy(): boolean
}

/**
 * Keeps `closeIdleConnections`, and with it `close`, from cutting off replies. Node takes a connection for idle as soon as its
 * reply is written, though much of that may still wait in memory for a client that reads slowly. Here idle connections are
 * closed once no such reply is on its way: call it again.
 */
export function spareReplies(server: Server): Connections {
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  const closeIdle = server.closeIdleConnections.bind(server)
  server.closeIdleConnections = () => {
    if (![...sockets].some(isSending)) closeIdle()
  }
  return {
    open: () => sockets.size,
    areBusy: () => [...sockets].some((socket) => replyOf(socket) !== undefined)
  }
}

const replyOf = (socket: Socket) => (socket as { _httpMessage?: ServerResponse | null })._httpMessage ?? undefined

function isSending(socket: Socket): boolean {
  const reply = replyOf(socket)
  return reply?.writableEnded === true && !reply.writableFinished
}

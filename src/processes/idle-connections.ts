import type { IncomingMessage, Server, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'

export type Connections = {
  open(): number
  /** Tells whether any connection has an unanswered request. */
  areBusy(): boolean
}

/**
 * Makes `closeIdleConnections`, and with it `close`, wait for replies that are still being sent. Node treats a
 * connection as idle as soon as its reply is written, although much of the reply may still be buffered for a slow
 * client.
 *
 * While any reply is buffered, `closeIdleConnections` closes nothing, so call it repeatedly.
 */
export function protectUnsentReplies(server: Server): Connections {
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
    areBusy: () => [...sockets].some((socket) => findPendingReply(socket) !== undefined)
  }
}

/** The reply that a connection of a Node server owes, or undefined. Node keeps it in a private member of the socket. */
export function findPendingReply(socket: Socket): ServerResponse<IncomingMessage> | undefined {
  return (socket as { _httpMessage?: ServerResponse<IncomingMessage> | null })._httpMessage ?? undefined
}

function isSending(socket: Socket): boolean {
  const reply = findPendingReply(socket)
  return reply?.writableEnded === true && !reply.writableFinished
}

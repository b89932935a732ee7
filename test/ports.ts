import { once } from 'node:events'
import { connect, createServer } from 'node:net'

/**
 * A free TCP port of 127.0.0.1, between 15,000 and 31,000. The system gives outgoing connections ports above that
 * range, so none of them takes this port before the test listens on it.
 */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = 15_000 + Math.floor(Math.random() * 16_000)
    const server = createServer()
    server.listen(port, '127.0.0.1')
    const taken = await once(server, 'listening').then(
      () => false,
      () => true
    )
    if (taken) continue
    server.close()
    await once(server, 'close')
    return port
  }
}

/** Whether something on 127.0.0.1 accepts connections on this port. */
export async function accepts(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1')
  try {
    await once(socket, 'connect')
    return true
  } catch {
    return false
  } finally {
    socket.destroy()
  }
}

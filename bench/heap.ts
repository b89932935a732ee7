import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'

/*
 * What a process of Node keeps alive. Its resident memory says little of that: it holds what the garbage collector leaves for
 * later, which is tens of megabytes more or less.
 */

const patienceMs = 10_000

type HeapUsage = { usedSize: number; embedderHeapUsedSize: number; backingStorageSize: number }

/**
 * Bytes on the heap and in buffers after a collection. The process must have been started with `--inspect-port=<port>`; Node
 * opens its inspector there on SIGUSR1.
 */
export async function liveBytes(pid: number, port: number): Promise<number> {
  process.kill(pid, 'SIGUSR1')
  const inspector = new WebSocket(await findInspector(port))
  await once(inspector, 'open')
  let count = 0
  async function command(method: string): Promise<unknown> {
    const id = ++count
    inspector.send(JSON.stringify({ id, method }))
    for (;;) {
      const [{ data }] = (await once(inspector, 'message')) as [{ data: string }]
      const message = JSON.parse(data)
      if (message.id === id) return message.result
    }
  }
  await command('HeapProfiler.collectGarbage')
  const usage = (await command('Runtime.getHeapUsage')) as HeapUsage
  inspector.close()
  return usage.usedSize + usage.embedderHeapUsedSize + usage.backingStorageSize
}

async function findInspector(port: number): Promise<string> {
  for (const deadline = performance.now() + patienceMs; performance.now() < deadline; await sleep(50)) {
    const reply = await fetch(`http://127.0.0.1:${port}/json/list`).catch(() => undefined)
    const [target] = ((await reply?.json()) ?? []) as { webSocketDebuggerUrl: string }[]
    if (target) return target.webSocketDebuggerUrl
  }
  throw new Error(`no inspector at port ${port} after ${patienceMs} ms`)
}

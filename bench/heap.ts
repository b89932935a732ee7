import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'

/*
 * Measures the live memory of a Node process. Its resident memory is no measure of that: it includes garbage that is
 * not collected yet, which varies by tens of megabytes.
 */

const inspectorTimeoutMs = 10_000

type HeapUsage = { usedSize: number; embedderHeapUsedSize: number; backingStorageSize: number }

/**
 * Returns the bytes on the heap and in buffers after a garbage collection. Start the process with
 * `--inspect-port=<port>`: on SIGUSR1 Node opens its inspector on that port.
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
  for (const deadline = performance.now() + inspectorTimeoutMs; performance.now() < deadline; await sleep(50)) {
    const reply = await fetch(`http://127.0.0.1:${port}/json/list`).catch(() => undefined)
    const [target] = ((await reply?.json()) ?? []) as { webSocketDebuggerUrl: string }[]
    if (target) return target.webSocketDebuggerUrl
  }
  throw new Error(`no inspector at port ${port} after ${inspectorTimeoutMs} ms`)
}

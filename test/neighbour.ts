import { parentPort, workerData } from 'node:worker_threads'

/*
 * A worker thread that acts as another agency under ordinary load: it sends one request after another, with a fixed
 * pause, and records the latency of each. A message from the parent asks for the latencies since the message before.
 */

const { url, token, pauseMs } = workerData as { url: string; token: string; pauseMs: number }
let latencies: number[] = []
let failed = 0

async function ask(): Promise<void> {
  const startedAt = performance.now()
  try {
    const reply = await fetch(`${url}/api/v1/users/me`, { headers: { authorization: `Bearer ${token}` } })
    await reply.arrayBuffer()
    if (reply.status !== 200) failed++
  } catch {
    failed++
  }
  latencies.push(performance.now() - startedAt)
}

async function work(): Promise<void> {
  for (;;) {
    await ask()
    await new Promise((resolve) => setTimeout(resolve, pauseMs))
  }
}

parentPort?.on('message', () => {
  parentPort?.postMessage({ latencies: latencies.sort((a, b) => a - b), failed })
  latencies = []
  failed = 0
})
work()

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import http from 'node:http'
import type { AddressInfo } from 'node:net'
import { eventually, type Owner } from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'

/*
 * Starts the WAF of deploy/waf, as .ci/run compiles it, in front of a server.
 */

/** Compiled from Go, so that it is missing where there is no Go. */
export const waf = findProgram('waf', { compiled: true })

export type Refusal = {
  msg: string
  request_id: string
  status: number
  client: string
  host: string
  path: string
  rules: { id: number; msg: string; at: string[] }[]
}

export async function startWaf(t: Owner, backend: string, chosen?: number) {
  const port = chosen ?? (await freePort())
  const env = { WAF_LISTEN: `127.0.0.1:${port}`, WAF_BACKEND: backend } as unknown as NodeJS.ProcessEnv
  const child = spawn(waf.path, { env, stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk
  })
  const exited = once(child, 'exit')
  t.teardown(async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    await exited
  })
  const lines = () => text.split('\n').filter(Boolean)
  await eventually(() => {
    if (child.exitCode !== null) throw new Error('the WAF ended')
    return lines().length > 0
  })
  // the line says that it begins to listen
  const url = `http://127.0.0.1:${port}`
  await eventually(() =>
    fetch(`${url}/waf-health`).then(
      (reply) => reply.status === 204,
      () => false
    )
  )
  return {
    port,
    url,
    child,
    exited,
    output: () => text,
    refusals: () =>
      lines()
        .map((line) => JSON.parse(line) as Refusal)
        .filter(({ msg }) => msg === 'refused')
  }
}

/** A server that takes everything, and keeps what it got. */
export async function startTaker(t: Owner) {
  const taken: { method: string; url: string; headers: http.IncomingHttpHeaders; length: number }[] = []
  const server = http.createServer(async (request, reply) => {
    const { method = '', url = '', headers } = request
    const entry = { method, url, headers, length: 0 }
    taken.push(entry)
    for await (const chunk of request) entry.length += chunk.length
    reply.writeHead(204).end()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return { taken, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }
}

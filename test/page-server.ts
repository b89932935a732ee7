import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { join, normalize, sep } from 'node:path'
import type { Test } from 'tap'
import { clientFolder, root } from './harness.ts'

const types: Record<string, string> = { html: 'text/html', js: 'text/javascript', mjs: 'text/javascript' }

/**
 * Serves the pages in test/pages with the published client, without a bundler. Paths that links and providers lead to,
 * such as `/password/reset`, have the page of the agency's people.
 */
export async function servePage(t: Test): Promise<number> {
  const folders: [prefix: string, folder: string][] = [
    ['/client/', join(clientFolder, 'dist')],
    ['/openapi-fetch/', join(clientFolder, 'node_modules', 'openapi-fetch', 'dist')],
    ['/', join(root, 'test', 'pages')]
  ]
  const server = createServer((request, reply) => {
    const path = new URL(request.url ?? '/', 'http://localhost').pathname
    const [prefix, folder] = folders.find(([each]) => path.startsWith(each)) as [string, string]
    const name = path === '/' ? 'index.html' : path.includes('.') ? path.slice(prefix.length) : 'people.html'
    const file = normalize(join(folder, name))
    if (!file.startsWith(folder + sep) || !existsSync(file)) return void reply.writeHead(404).end()
    reply.writeHead(200, { 'content-type': types[file.split('.').at(-1) as string] ?? 'text/plain' })
    reply.end(readFileSync(file))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return (server.address() as { port: number }).port
}

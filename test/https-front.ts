import { createHash, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { pipeline } from 'node:stream'
import { type Owner, temporaryFolder } from './harness.ts'
import { makeCertificate } from './traefik.ts'

/** A side that goes away in the middle takes the other one with it, and nothing else. */
const ignore = () => {}

/** Finds the port of this machine that answers for a host name. Undefined: none does. */
export type Route = (host: string) => number | undefined

/**
 * Takes HTTPS for hosts, as a proxy in front of the product does, and passes each request on by its host name. The
 * certificate is good for `names`.
 */
export async function startHttpsFront(t: Owner, names: string[], route: Route) {
  const folder = temporaryFolder(t)
  makeCertificate(folder, ...names)
  const read = (name: string) => readFileSync(join(folder, name))
  const certificate = read('server.crt')
  const server = https.createServer({ key: read('server.key'), cert: certificate }, (request, reply) => {
    const host = request.headers.host ?? ''
    const port = route(host)
    if (port === undefined) return void reply.writeHead(404).end()
    const headers = { ...request.headers, 'x-forwarded-for': '198.51.100.7', 'x-forwarded-proto': 'https' }
    const { method = 'GET', url: path } = request
    const passed = http.request({ host: '127.0.0.1', port, method, path, headers }, (answer) => {
      reply.writeHead(answer.statusCode ?? 502, answer.headers)
      pipeline(answer, reply, ignore)
    })
    passed.on('error', () => reply.destroy())
    pipeline(request, passed, ignore)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  const key = new X509Certificate(certificate).publicKey.export({ type: 'spki', format: 'der' })
  return {
    port: (server.address() as AddressInfo).port,
    /** The certificate of the authority, for Node. */
    authority: join(folder, 'ca.crt'),
    /** The digest by which Chromium knows the certificate. */
    digest: createHash('sha256').update(key).digest('base64')
  }
}

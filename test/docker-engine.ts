import { once } from 'node:events'
import http from 'node:http'
import { join } from 'node:path'
import { parse } from 'yaml'
import { type Owner, readText, temporaryFolder } from './harness.ts'

type Placed = { service: string; address: string; port: number }

/**
 * A server for the part of Docker's API that Traefik uses. It lists the containers that `docker compose up` would make of
 * compose.yaml, with their names, labels and networks. Only the port differs. Each has a secret in its environment.
 */
export async function startEngine(t: Owner, placed: Placed[]) {
  const compose = parse(readText('compose.yaml'), { merge: true })
  const secret = 'JWT_SECRET=known to the container only'
  const describe = ({ service, address, port }: Placed, index: number) => {
    const { labels: own = {}, networks: joined } = compose.services[service]
    const labels: Record<string, string> = {
      'com.docker.compose.project': compose.name,
      'com.docker.compose.service': service,
      ...own
    }
    for (const name of Object.keys(labels)) if (name.endsWith('.server.port')) labels[name] = String(port)
    const networks = (joined as string[]).map((name) => [
      `${compose.name}_${name}`,
      // Traefik is in one of the networks only
      { IPAddress: name === 'edge' ? address : '127.0.0.99', NetworkID: name }
    ])
    const name = `${compose.name}-${service}-${index + 1}`
    return {
      Id: String(index).repeat(64),
      Name: `/${name}`,
      Names: [`/${name}`],
      State: { Status: 'running', Running: true },
      Config: { Labels: labels, Env: [secret] },
      Labels: labels,
      Command: `node --secret ${secret}`,
      HostConfig: { NetworkMode: `${compose.name}_edge` },
      NetworkSettings: { Networks: Object.fromEntries(networks), Ports: {} }
    }
  }
  const containers = placed.map(describe)
  const asked: string[] = []
  const listeners = new Set<http.ServerResponse>()
  const server = http.createServer((request, reply) => {
    asked.push(`${request.method} ${request.url}`)
    const path = (request.url ?? '').split('?')[0]?.replace(/^\/v[\d.]+/, '') ?? ''
    const send = (body: unknown) => reply.setHeader('content-type', 'application/json').end(JSON.stringify(body))
    reply.setHeader('api-version', '1.50')
    if (path === '/_ping') reply.end('OK')
    else if (path === '/version') send({ Version: '28.0.0', ApiVersion: '1.50', MinAPIVersion: '1.24' })
    else if (path === '/containers/json') send(containers.map((each) => ({ ...each, State: 'running' })))
    else if (path === '/events') {
      listeners.add(reply)
      reply.writeHead(200).flushHeaders()
    } else send(containers.find(({ Id }) => path === `/containers/${Id}/json`))
  })
  const emit = (event: object) => {
    for (const listener of listeners) listener.write(`${JSON.stringify(event)}\n`)
  }
  const socket = join(temporaryFolder(t), 'docker.sock')
  server.listen(socket)
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return {
    socket,
    secret,
    containers,
    /** All that the engine was asked for. */
    asked,
    emit,
    start(container: Placed) {
      const started = describe(container, containers.length)
      containers.push(started)
      emit({ Type: 'container', Action: 'start', Actor: { ID: started.Id, Attributes: { secret } } })
    }
  }
}

import { once } from 'node:events'
import { createServer, type Server } from 'node:net'
import type { Config } from './config.ts'
import { InvalidConfiguration } from './invalid-configuration.ts'

type Endpoint = { name: 'PORT' | 'METRICS_PORT'; host: string; port: number }

/**
 * Throws InvalidConfiguration when this process can't listen on the configured ports. Call it before anything is
 * created or connected to, so that a second start on a port that is taken leaves nothing behind.
 */
export async function refuseTakenPorts({ host, port, metricsHost, metricsPort }: Config): Promise<void> {
  const endpoints: Endpoint[] = [
    { name: 'PORT', host, port },
    { name: 'METRICS_PORT', host: metricsHost, port: metricsPort }
  ]
  const held: Server[] = []
  const problems: string[] = []
  // keep each port until the last was tried, so that one port in two settings is found too
  for (const endpoint of endpoints.filter((each) => each.port !== 0)) {
    const server = createServer()
    try {
      await once(server.listen({ host: endpoint.host, port: endpoint.port, exclusive: true }), 'listening')
      held.push(server)
    } catch (err) {
      problems.push(describe(endpoint, (err as NodeJS.ErrnoException).code ?? ''))
    }
  }
  await Promise.all(held.map((server) => new Promise((done) => server.close(done))))
  if (problems.length > 0) throw new InvalidConfiguration(problems)
}

function describe({ name, host, port }: Endpoint, code: string): string {
  const hostName = name === 'PORT' ? 'HOST' : 'METRICS_HOST'
  if (code === 'EADDRINUSE') {
    return `${name}: ${port} is taken on ${host}: end what listens there, or set another, such as ${name}=${port + 1}`
  }
  if (code === 'EACCES') return `${name}: ${port} is not for this user (EACCES): set one from 1024 on`
  return `${hostName}: ${host} is no address of this machine (${code}): set one that is, such as 127.0.0.1`
}

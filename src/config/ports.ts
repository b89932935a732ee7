import { once } from 'node:events'
import { createServer, type Server } from 'node:net'
import type { Config } from './config.ts'
import { InvalidConfiguration } from './invalid-configuration.ts'

type Place = { name: 'PORT' | 'METRICS_PORT'; host: string; port: number }

/**
 * Throws InvalidConfiguration when this process could not listen where the settings say. It is asked before anything is made or
 * connected to, so that a second start on a port that is taken leaves nothing behind.
 */
export async function refuseTakenPorts({ host, port, metricsHost, metricsPort }: Config): Promise<void> {
  const places: Place[] = [
    { name: 'PORT', host, port },
    { name: 'METRICS_PORT', host: metricsHost, port: metricsPort }
  ]
  const held: Server[] = []
  const problems: string[] = []
  // all are held until the last was tried, so that two settings of one port are found too
  for (const place of places.filter((each) => each.port !== 0)) {
    const server = createServer()
    try {
      await once(server.listen({ host: place.host, port: place.port, exclusive: true }), 'listening')
      held.push(server)
    } catch (err) {
      problems.push(describe(place, (err as NodeJS.ErrnoException).code ?? ''))
    }
  }
  await Promise.all(held.map((server) => new Promise((done) => server.close(done))))
  if (problems.length > 0) throw new InvalidConfiguration(problems)
}

function describe({ name, host, port }: Place, code: string): string {
  const hostName = name === 'PORT' ? 'HOST' : 'METRICS_HOST'
  if (code === 'EADDRINUSE') {
    return `${name}: ${port} is taken on ${host}: end what listens there, or set another, such as ${name}=${port + 1}`
  }
  if (code === 'EACCES') return `${name}: ${port} is not for this user (EACCES): set one from 1024 on`
  return `${hostName}: ${host} is no address of this machine (${code}): set one that is, such as 127.0.0.1`
}

import { once } from 'node:events'
import http from 'node:http'
import { createInterface } from 'node:readline'
import { text } from 'node:stream/consumers'

/*
 * The part of Docker's API that Traefik needs, over TCP and for reading only: `node src/processes/docker-view.ts` in compose.yaml.
 *
 * Whoever reaches Docker's socket is root on the machine, whether the socket is mounted read-only or not. So no container that takes
 * requests from outside has it. A proxy that only filters paths is not enough: an inspection of a container shows its environment,
 * with every secret in it. Here each answer is made anew from the members that Traefik reads.
 */

type Container = {
  Id: string
  Names?: string[]
  Labels?: Record<string, string> | null
  State?: unknown
  HostConfig?: { NetworkMode?: string }
  NetworkSettings?: unknown
}
type Inspection = {
  Id: string
  Name?: string
  Config?: { Labels?: Record<string, string> | null }
  State?: { Status?: string; Running?: boolean; Health?: { Status?: string } }
  HostConfig?: { NetworkMode?: string }
  NetworkSettings?: unknown
}
type Event = { Type?: string; Action?: string; Actor?: { ID?: string }; time?: number; timeNano?: number }
type Version = { Version?: string; ApiVersion?: string; MinAPIVersion?: string; Os?: string; Arch?: string }

const path = /^(\/v\d\.\d{1,2})?\/(_ping|version|events|containers\/json|containers\/[\da-f]{12,64}\/json)(?:\?.*)?$/
/** Changes of containers after which Traefik reads them again. */
const actions = /^(?:start|die|health_status\b.*)$/
const answerTimeoutMs = 10_000

/** Only containers that ask for it are shown: neither the names nor the addresses of the others are. */
const isShown = (labels: Record<string, string> | null | undefined) => labels?.['traefik.enable'] === 'true'

/** Makes the server. `socketPath` is Docker's socket. Anything but the five questions of Traefik is 403. */
export function createDockerView(socketPath: string): http.Server {
  const server = http.createServer({ maxHeaderSize: 8192 }, (request, reply) => {
    answer(socketPath, request, reply).catch((err: Error) => {
      process.stderr.write(`${JSON.stringify({ level: 'warn', msg: 'Docker could not be asked', err: err.message })}\n`)
      if (reply.headersSent) reply.destroy()
      else reply.writeHead(502).end()
    })
  })
  // a stream of events has no end, and other requests have no body
  server.requestTimeout = answerTimeoutMs
  return server
}

async function answer(socketPath: string, request: http.IncomingMessage, reply: http.ServerResponse): Promise<void> {
  const [, version = '', question = ''] = path.exec(request.url ?? '') ?? []
  if (question === '' || (request.method !== 'GET' && !(request.method === 'HEAD' && question === '_ping'))) {
    reply.writeHead(403).end()
    return
  }
  // nothing of the request but its version and the id of a container reaches Docker
  const asked = question === 'events' ? `events?filters=${encodeURIComponent('{"type":["container"]}')}` : question
  const answered = await ask(socketPath, `${version}/${asked}`)
  for (const name of ['api-version', 'docker-experimental', 'ostype']) {
    const value = answered.headers[name]
    if (value !== undefined) reply.setHeader(name, value)
  }
  if (question === 'events' && answered.statusCode === 200) return passEvents(answered, reply)

  answered.setTimeout(answerTimeoutMs, () => answered.destroy(new Error('the answer does not end')))
  const body = await text(answered)
  if (question === '_ping') {
    reply.writeHead(answered.statusCode ?? 502, { 'content-type': 'text/plain' }).end('OK')
    return
  }
  const shown = answered.statusCode === 200 ? select(question, JSON.parse(body)) : undefined
  reply.writeHead(shown === undefined && answered.statusCode === 200 ? 404 : (answered.statusCode ?? 502), {
    'content-type': 'application/json'
  })
  reply.end(JSON.stringify(shown ?? { message: 'not shown' }))
}

async function ask(socketPath: string, path: string): Promise<http.IncomingMessage> {
  const asking = http.request({ socketPath, path, agent: false, headers: { host: 'docker' } })
  // until the headers are there; a stream of events may be silent for hours after them
  const timer = setTimeout(() => asking.destroy(new Error('no answer')), answerTimeoutMs)
  asking.end()
  try {
    const [answered] = (await once(asking, 'response')) as [http.IncomingMessage]
    return answered
  } finally {
    clearTimeout(timer)
  }
}

/** The members of an answer that Traefik reads. Undefined for a container that is not shown. */
function select(question: string, body: unknown): unknown {
  if (question === 'version') {
    const { Version, ApiVersion, MinAPIVersion, Os, Arch } = body as Version
    return { Version, ApiVersion, MinAPIVersion, Os, Arch }
  }
  if (question === 'containers/json') {
    return (body as Container[])
      .filter(({ Labels }) => isShown(Labels))
      .map(({ Id, Names, Labels, State, HostConfig, NetworkSettings }) => {
        const { NetworkMode } = HostConfig ?? {}
        return { Id, Names, Labels, State, HostConfig: { NetworkMode }, NetworkSettings }
      })
  }
  const { Id, Name, Config, State, HostConfig, NetworkSettings } = body as Inspection
  if (!isShown(Config?.Labels)) return undefined
  const { Status, Running, Health } = State ?? {}
  return {
    Id,
    Name,
    Config: { Labels: Config?.Labels },
    State: { Status, Running, ...(Health && { Health: { Status: Health.Status } }) },
    HostConfig: { NetworkMode: HostConfig?.NetworkMode },
    NetworkSettings
  }
}

/** Passes on that something has started or ended, and not what was executed in it. */
async function passEvents(events: http.IncomingMessage, reply: http.ServerResponse): Promise<void> {
  reply.on('close', () => events.destroy())
  reply.writeHead(200, { 'content-type': 'application/json' }).flushHeaders()
  for await (const line of createInterface({ input: events })) {
    if (line.trim() === '') continue
    const { Type, Action = '', Actor, time, timeNano } = JSON.parse(line) as Event
    if (Type !== 'container' || !actions.test(Action)) continue
    reply.write(`${JSON.stringify({ Type, Action, Actor: { ID: Actor?.ID, Attributes: {} }, time, timeNano })}\n`)
  }
  reply.end()
}

if (import.meta.main) {
  const server = createDockerView('/var/run/docker.sock').listen(2375, '0.0.0.0')
  process.once('SIGTERM', () => {
    server.close()
    server.closeAllConnections()
  })
}

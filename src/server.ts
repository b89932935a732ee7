import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyInstance } from 'fastify'
import { type EmbeddedServer, FolderInUse, startEmbedded } from '../db/embedded.ts'
import { migrate } from '../db/migrate.ts'
import { buildApp } from './app.ts'
import { type Config, InvalidConfiguration, readConfig } from './config.ts'

/** sysexits.h: configuration error. */
const exitConfig = 78

/** Longer than the interval in which a load balancer asks for health. */
const noticeMs = 3000

const say = (line: string) => void process.stderr.write(`${line}\n`)

let app: FastifyInstance | undefined
let embedded: EmbeddedServer | undefined
let config: Config | undefined
let stopping = false

process.on('SIGTERM', stop)
process.on('SIGINT', stop)

try {
  config = readConfig(process.env)
  await start(config)
} catch (err) {
  if (!stopping) await fail(err)
}

async function start(settings: Config): Promise<void> {
  const running = settings.databaseUrl ? settings : await withEmbedded(settings)
  if (running.databaseOwnerUrl) {
    const applied = await migrate(running.databaseOwnerUrl)
    if (applied.length > 0) say(`migrated: ${applied.join(', ')}`)
  }
  if (stopping) return
  app = buildApp(running)
  await app.ready()
  await app.listen({ host: running.host, port: running.port })
  if (running.nodeEnv === 'development') welcome(app)
}

/** No database was named: the product brings its own. */
async function withEmbedded(settings: Config): Promise<Config> {
  embedded = await startEmbedded(settings.dataDir, { progress: say })
  return {
    ...settings,
    databaseUrl: embedded.url('aggios_app'),
    databaseOwnerUrl: embedded.url('aggios_owner')
  }
}

function welcome(server: FastifyInstance): void {
  const address = server.server.address()
  const port = typeof address === 'object' && address ? address.port : ''
  const origin = `http://localhost:${port}`
  say(`
Aggios API is ready.

  read it and try it   ${origin}/api/v1/docs
  register an agency   curl ${origin}/api/v1/auth/register -H 'content-type: application/json' \\
                         -d '{"tenant":{"name":"Acme","slug":"acme"},"name":"Ada","email":"ada@acme.example","password":"correct horse battery"}'
`)
}

/**
 * Ends without dropping a request: says so to load balancers, takes no more connections, lets every reply finish and its
 * connection close, then closes pools and the embedded server. A second signal, or a drain over its time, ends at once.
 */
async function stop(signal: NodeJS.Signals): Promise<void> {
  if (stopping) process.exit(1)
  stopping = true
  app?.log.info({ signal }, 'shutting down')
  const patience = (config?.shutdownTimeout ?? 1) * 1000
  const late = sleep(patience * 0.8, 'late' as const, { ref: false })
  try {
    const outcome = await Promise.race([drain(), late])
    if (outcome === 'late') {
      app?.log.warn('requests were cut off by the shutdown')
      app?.server.closeAllConnections()
    }
    await embedded?.stop()
    process.exit(0)
  } catch (err) {
    app?.log.error({ err }, 'the shutdown failed')
    process.exit(1)
  }
}

/** Behind a proxy: serves on for a moment while health says no, so that it looks elsewhere before the door is shut. */
async function drain(): Promise<void> {
  if (app && config && config.trustProxy.length > 0) {
    app.health.draining = true
    await sleep(Math.min(noticeMs, (config.shutdownTimeout * 1000) / 4))
  }
  await app?.close()
}

async function fail(err: unknown): Promise<never> {
  if (err instanceof InvalidConfiguration) {
    say(err.message)
    process.exit(exitConfig)
  }
  say(`Aggios API could not start: ${describe(err)}`)
  await app?.close().catch(() => {})
  await embedded?.stop()
  process.exit(err instanceof FolderInUse ? exitConfig : 1)
}

/** The message and those of its causes; the stack only when somebody asks for it. */
function describe(err: unknown): string {
  if (!(err instanceof Error)) return String(err)
  const own = process.env.LOG_LEVEL === 'debug' ? (err.stack ?? err.message) : err.message || err.name
  return err.cause ? `${own}: ${describe(err.cause)}` : own
}

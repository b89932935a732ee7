import { setTimeout as sleep } from 'node:timers/promises'
import { type EmbeddedServer, startEmbedded } from '../db/embedded.ts'
import { FolderInUse } from '../db/folder-lock.ts'
import { migrate, setAuditRetention } from '../db/migrate.ts'
import { type Config, readConfig, remembersReads } from './config/config.ts'
import { readEnvironment } from './config/env-file.ts'
import { InvalidConfiguration } from './config/invalid-configuration.ts'
import { refuseTakenPorts } from './config/ports.ts'
import { isLoopback } from './config/production.ts'
import { describe } from './error-text.ts'
import { buildInternal, type InternalListener } from './processes/internal-listener.ts'
import { type Processes, serveInProcess } from './processes/serving.ts'
import { startWorkers, WorkerEnded } from './processes/supervisor.ts'
import { type SecretFiles, secretFilesOf, watchSecretFiles } from './secrets/secret-files.ts'
import { onHangUp, onSignals } from './signals.ts'

/** The exit code EX_CONFIG of sysexits.h: a configuration error. */
const exitConfig = 78

const say = (line: string) => void process.stderr.write(`${line}\n`)

let processes: Processes | undefined
let internal: InternalListener | undefined
let secretFiles: SecretFiles | undefined
let embedded: EmbeddedServer | undefined
let config: Config | undefined
let stopping = false

onSignals(stop, cutOff)
// before there is a listener it does nothing; without this line it would end the process
process.on('SIGUSR2', (signal) => internal?.logLevel.toggle(signal))

try {
  const environment = readEnvironment()
  // during the start there is nothing to read again; without files of secrets the signal ends the process, as it does anywhere
  if (secretFilesOf(environment).size > 0) onHangUp(() => void secretFiles?.reload())
  config = readConfig(environment)
  await start(config)
} catch (err) {
  if (!stopping) await fail(err)
}

async function start(settings: Config): Promise<void> {
  await refuseTakenPorts(settings)
  const running = await prepareDatabase(settings)
  if (stopping) return
  internal = buildInternal(
    running,
    () => processes,
    () => secretFiles
  )
  if (settings.auditRetention !== undefined && settings.databaseUrl && !settings.databaseOwnerUrl) {
    internal.log.warn('AUDIT_RETENTION has no effect here: it belongs to "npm run migrate"')
  }
  if (settings.databaseOwnerUrl && settings.nodeEnv === 'production') {
    internal.log.warn(
      'a process that serves was given DATABASE_OWNER_URL: migrate by "npm run migrate" and leave it out here'
    )
  }
  if (process.env.NODE_ENV === undefined && !isLoopback(running.host)) {
    internal.log.warn(
      `NODE_ENV is not set, so this is development, and ${running.host} lets others in: see .env.example`
    )
  }
  if (running.metricsPort > 0) await internal.listen({ host: running.metricsHost, port: running.metricsPort })
  processes = running.webConcurrency > 1 ? startSeveral(running, internal) : serveInProcess(running, () => end(1))
  const port = await processes.ready
  await followSecretFiles(running, processes, internal)
  if (running.nodeEnv === 'development') return welcome(port)
  // loaded only where it is used, which makes other starts faster
  const { examineAtStart } = await import('./cli/doctor/at-start.ts')
  void examineAtStart(running, internal.log)
}

/** Reads the files of secrets again when they change. */
async function followSecretFiles(running: Config, { renew }: Processes, { log }: InternalListener): Promise<void> {
  secretFiles = watchSecretFiles(process.env, running, log, renew)
  await secretFiles.start()
}

function startSeveral(settings: Config, { log }: InternalListener): Processes {
  if (settings.redisUrl === undefined) {
    log.warn('WEB_CONCURRENCY is more than 1 without REDIS_URL: each process counts attempts and limits for itself')
  }
  if (!remembersReads(settings) && settings.readMemory === 'auto') {
    log.warn('reads are not remembered: a process would learn of the changes of another one half a second later')
  }
  return startWorkers(settings, log, fail)
}

/**
 * Migrates the database if the settings contain the owner's credentials. The credentials are removed from the returned
 * settings and from the environment, so that neither the application nor a worker ever has them.
 */
async function prepareDatabase(settings: Config): Promise<Config> {
  const { databaseOwnerUrl, ...serving } = settings.databaseUrl ? settings : await withEmbedded(settings)
  delete process.env.DATABASE_OWNER_URL
  delete process.env.DATABASE_OWNER_URL_FILE
  if (databaseOwnerUrl) {
    const applied = await migrate(databaseOwnerUrl, say)
    if (applied.length > 0) say(`migrated: ${applied.join(', ')}`)
    await setAuditRetention(databaseOwnerUrl, serving.auditRetention)
  }
  return { ...serving, databaseOwnerUrl: undefined }
}

/** Starts the embedded server, for settings without a database. */
async function withEmbedded(settings: Config): Promise<Config> {
  embedded = await startEmbedded(settings.dataDir, { progress: say })
  return {
    ...settings,
    databaseUrl: embedded.url('aggios_app'),
    databaseOwnerUrl: embedded.url('aggios_owner')
  }
}

function welcome(port: number): void {
  const origin = `http://localhost:${port}`
  say(`
Aggios API is ready.

  read it and try it   ${origin}/api/v1/docs
  register an agency   curl ${origin}/api/v1/auth/register -H 'content-type: application/json' \\
                         -d '{"tenant":{"name":"Acme","slug":"acme"},"name":"Ada","email":"ada@acme.example","password":"correct horse battery"}'
`)
}

/**
 * Shuts down when the last request has finished, at SHUTDOWN_TIMEOUT at the latest. A second signal ends the process at
 * once (`cutOff`). The embedded server stops last.
 */
async function stop(signal: NodeJS.Signals): Promise<void> {
  stopping = true
  const late = sleep((config?.shutdownTimeout ?? 1) * 900, undefined, { ref: false })
  try {
    await Promise.race([processes?.drain({ signal }), late])
    await end(0)
  } catch (err) {
    say(`the shutdown failed: ${describe(err)}`)
    await end(1)
  }
}

function cutOff(): never {
  processes?.kill()
  process.exit(1)
}

/** Stops the servers that still run, and exits. */
async function end(code: number): Promise<never> {
  processes?.kill()
  if (internal?.server.listening) await internal.close()
  await embedded?.stop()
  process.exit(code)
}

async function fail(err: unknown): Promise<never> {
  if (err instanceof InvalidConfiguration) {
    say(err.message)
    return end(exitConfig)
  }
  // the worker has already reported the error
  if (err instanceof WorkerEnded) return end(err.exitCode)
  say(`Aggios API could not start: ${describe(err)}`)
  return end(err instanceof FolderInUse ? exitConfig : 1)
}

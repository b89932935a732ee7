import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Client } from 'minio'
import { startEmbedded } from '../db/embedded.ts'
import type { Environment } from '../src/config/environment.ts'
import { settings } from '../src/config/settings.ts'
import { type Owner, root } from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'
import { makeCertificate, startTraefik } from './traefik.ts'

/*
 * `npm run stack`: runs the product as it is deployed, on loopback and without Docker. It starts Traefik with the
 * repository's configuration and a certificate of its own authority, three processes, PostgreSQL, and Redis and an S3
 * server if they are installed. Ctrl-C ends and removes everything. If this process is killed, the others end too.
 */

const domain = 'aggios.test'
const { values: options } = parseArgs({
  options: { processes: { type: 'string', default: '3' }, port: { type: 'string', default: '8443' } }
})

const say = (line = '') => void process.stdout.write(`${line}\n`)
const knows = (name: string) => Object.values(settings).some((setting) => setting.name === name)

/** A command prefix that makes a program end when this process ends, also when it is killed. */
const setpriv = findProgram('setpriv')
const bound = setpriv.skip === false ? [setpriv.path, '--pdeathsig=SIGKILL'] : []
if (bound.length === 0) say('setpriv is not here: what this starts outlives it if it is killed by SIGKILL')

const started: (() => unknown)[] = []
const owner: Owner = { teardown: (work) => started.push(work) }
const dir = mkdtempSync(join(tmpdir(), 'aggios-stack-'))
owner.teardown(() => rmSync(dir, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 }))

let ending: Promise<void> | undefined
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => end(0))

try {
  await start()
} catch (err) {
  process.stderr.write(`the stack could not start: ${err instanceof Error ? err.message : err}\n`)
  await end(1)
}

/** Ends everything in reverse order of its start. A second signal meanwhile changes nothing. */
function end(code: number): Promise<void> {
  ending ??= (async () => {
    for (const work of started.reverse()) {
      try {
        await work()
      } catch (err) {
        process.stderr.write(`${err}\n`)
      }
    }
    process.exit(code)
  })()
  return ending
}

async function start(): Promise<void> {
  for (const name of ['traefik', 'openssl']) {
    const { skip } = findProgram(name)
    if (skip) throw new Error(`${skip}. Without it there is no stack; npm start runs one process`)
  }
  say(`starting, with data and logs in ${dir} …`)
  const database = await startEmbedded(join(dir, 'data'))
  owner.teardown(() => database.stop())
  const secrets = { JWT_SECRET: randomBytes(32).toString('hex'), PASSWORD_PEPPER: randomBytes(32).toString('hex') }
  const environment: Environment = {
    PATH: process.env.PATH,
    HOME: process.env.HOME,
    BASE_DOMAIN: domain,
    TRUST_PROXY: '127.0.0.1',
    APP_URL: `https://{slug}.${domain}:${options.port}`,
    DATABASE_URL: database.url('aggios_app'),
    DATABASE_OWNER_URL: database.url('aggios_owner'),
    ...secrets,
    ...(await startRedis()),
    ...(await startObjectStore())
  }
  const urls = await Promise.all(
    Array.from({ length: Number(options.processes) }, (_, index) => startProcess(`api-${index + 1}`, environment))
  )
  makeCertificate(dir, domain)
  const traefik = await startTraefik(
    owner,
    { BACKEND_URLS: urls.join(','), BASE_DOMAIN: domain, TLS_FILES: `${dir}/server.crt,${dir}/server.key` },
    (config) => {
      const { websecure } = config.entryPoints
      if (websecure) websecure.address = `127.0.0.1:${options.port}`
      Object.assign(config, {
        log: { ...config.log, filePath: join(dir, 'traefik.log') },
        accessLog: { ...config.accessLog, filePath: join(dir, 'traefik-access.log') }
      })
    },
    bound
  )
  watch('traefik', traefik.child)
  explain(urls, traefik.port('web'))
}

/** Starts a program that ends with this process, and writes its output to a file. */
function run(name: string, command: string[], env: Environment, cwd = dir) {
  const log = openSync(join(dir, `${name}.log`), 'a')
  const [program = '', ...args] = [...bound, ...command]
  const child = spawn(program, args, { cwd, env: env as NodeJS.ProcessEnv, stdio: ['ignore', log, log] })
  const exited = once(child, 'exit')
  owner.teardown(async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    await exited
  })
  watch(name, child)
  return child
}

/** Prints when a program has ended by itself. The others continue. */
function watch(name: string, child: ReturnType<typeof spawn>): void {
  child.once('exit', (code, signal) => {
    if (!ending) say(`${name} has ended (${code ?? signal})`)
  })
}

async function startProcess(name: string, environment: Environment): Promise<string> {
  const port = await freePort()
  const child = run(name, [process.execPath, ...process.execArgv, join(root, 'src', 'server.ts')], {
    ...environment,
    PORT: String(port)
  })
  const url = `http://127.0.0.1:${port}`
  await reach(name, child, async () => (await fetch(`${url}/api/v1/health/ready`)).ok)
  return url
}

/** Polls until `check` is true. Rejects with the end of the log if the program ends, and after a minute. */
async function reach(name: string, child: ReturnType<typeof spawn>, check: () => Promise<unknown>): Promise<void> {
  const deadline = Date.now() + 60_000
  while (!(await check().catch(() => false))) {
    if (child.exitCode !== null || Date.now() > deadline) {
      throw new Error(`${name} does not answer:\n${readFileSync(join(dir, `${name}.log`), 'utf8').slice(-2000)}`)
    }
    await sleep(100)
  }
}

async function startRedis(): Promise<Environment> {
  const redis = findOptional('redis-server', 'REDIS_URL')
  if (!redis) return {}
  const port = await freePort()
  const password = randomBytes(16).toString('hex')
  writeFileSync(join(dir, 'redis.conf'), `bind 127.0.0.1\nport ${port}\nrequirepass ${password}\nsave ""\n`, {
    mode: 0o600
  })
  const child = run('redis', [redis, join(dir, 'redis.conf')], { PATH: process.env.PATH })
  await reach('redis', child, async () => readFileSync(join(dir, 'redis.log'), 'utf8').includes('Ready to accept'))
  return { REDIS_URL: `redis://:${password}@127.0.0.1:${port}` }
}

/** Starts SeaweedFS, or else MinIO. Both are S3 servers. */
async function startObjectStore(): Promise<Environment> {
  const weed = findOptional('weed', 'S3_ENDPOINT')
  const program = weed ?? findOptional('minio', 'S3_ENDPOINT')
  if (!program) return {}
  const [accessKey, secretKey] = [randomBytes(10).toString('hex'), randomBytes(20).toString('hex')]
  const port = await freePort()
  const data = join(dir, 'objects')
  mkdirSync(data)
  const child = weed
    ? run('objects', await seaweedCommand(weed, data, port, { accessKey, secretKey }), { HOME: dir })
    : run('objects', [program, 'server', data, '--address', `127.0.0.1:${port}`], {
        HOME: dir,
        MINIO_ROOT_USER: accessKey,
        MINIO_ROOT_PASSWORD: secretKey
      })
  const store = new Client({ endPoint: '127.0.0.1', port, useSSL: false, accessKey, secretKey, region: 'us-east-1' })
  await reach('objects', child, () => store.makeBucket('aggios').then(() => true))
  return {
    S3_ENDPOINT: `http://127.0.0.1:${port}`,
    S3_REGION: 'us-east-1',
    S3_BUCKET: 'aggios',
    S3_ACCESS_KEY: accessKey,
    S3_SECRET_KEY: secretKey
  }
}

async function seaweedCommand(
  weed: string,
  data: string,
  port: number,
  credentials: { accessKey: string; secretKey: string }
): Promise<string[]> {
  const identity = {
    name: 'aggios',
    credentials: [credentials],
    actions: ['Admin', 'Read', 'Write', 'List', 'Tagging']
  }
  const config = join(dir, 'objects.json')
  writeFileSync(config, JSON.stringify({ identities: [identity] }), { mode: 0o600 })
  const ports = await Promise.all(
    [
      'master.port',
      'master.port.grpc',
      'volume.port',
      'volume.port.grpc',
      'filer.port',
      'filer.port.grpc',
      's3.port.grpc'
    ].map(async (name) => `-${name}=${await freePort()}`)
  )
  const flags = ['-ip=127.0.0.1', '-ip.bind=127.0.0.1', '-filer', '-s3', `-s3.port=${port}`, `-s3.config=${config}`]
  return [weed, 'server', `-dir=${data}`, '-volume.max=10', ...flags, ...ports]
}

/** The path of an optional program. If it is missing, prints why the stack runs without it. */
function findOptional(name: string, setting: string): string | undefined {
  if (!knows(setting)) {
    say(`${name}: left out, this version has no setting ${setting}`)
    return undefined
  }
  const { path, skip } = findProgram(name)
  if (skip) say(`${name}: left out, ${skip}`)
  return skip ? undefined : path
}

function explain(urls: string[], httpPort: number): void {
  const api = `https://api.${domain}:${options.port}`
  const acme = `https://acme.${domain}:${options.port}`
  const call = `curl --cacert ${dir}/ca.crt --resolve *:${options.port}:127.0.0.1`
  say(`
The stack is up: Traefik in front of ${urls.length} processes (${urls.join(', ')}).

  the general host     ${api}
  an agency            https://<slug>.${domain}:${options.port}
  plain HTTP           http://127.0.0.1:${httpPort}, which only leads to HTTPS
  data and logs        ${dir}

  call="${call}"
  $call ${api}/api/health
  $call ${api}/api/v1/auth/register -H 'content-type: application/json' \\
    -d '{"tenant":{"name":"Acme","slug":"acme"},"name":"Ada","email":"ada@acme.example","password":"correct horse battery"}'
  $call ${acme}/api/v1/tenant -H "authorization: Bearer $ACCESS"

Ctrl-C ends it and removes everything.`)
}

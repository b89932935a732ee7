import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import type https from 'node:https'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parse, stringify } from 'yaml'
import type { Environment } from '../src/config/environment.ts'
import { eventually, type Owner, password, root } from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'

/*
 * Starts the real Traefik with traefik.yml and traefik.dynamic.yml. In the static file, the ports and folders are
 * replaced, and the Docker provider is removed. The dynamic file is not changed.
 */

export const program = findProgram('traefik')
export const openssl = findProgram('openssl')

export type StaticConfig = {
  log: object
  accessLog: object
  entryPoints: Record<
    string,
    { address: string; transport?: { respondingTimeouts: Record<string, string>; lifeCycle: Record<string, string> } }
  >
  providers: { docker?: object; file: { filename: string } }
  certificatesResolvers: { letsencrypt: { acme: Record<string, unknown> & { dnsChallenge: object } } }
}

export const readStatic = (): StaticConfig => parse(readFileSync(join(root, 'traefik.yml'), 'utf8'), { merge: true })

export type Traefik = {
  child: ChildProcess
  port(entryPoint: string): number
  configFile: string
  log(): Record<string, unknown>[]
}

/**
 * Resolves when Traefik routes. `change` edits the static configuration. `prefix` is a command that runs Traefik in its
 * place.
 */
export async function startTraefik(
  t: Owner,
  env: Environment,
  change?: (config: StaticConfig) => void,
  prefix: string[] = []
): Promise<Traefik> {
  const dir = mkdtempSync(join(tmpdir(), 'aggios-traefik-'))
  const config = readStatic()
  for (const entryPoint of Object.values(config.entryPoints)) entryPoint.address = `127.0.0.1:${await freePort()}`
  delete config.providers.docker
  config.providers.file.filename = join(root, 'traefik.dynamic.yml')
  config.certificatesResolvers.letsencrypt.acme.storage = join(dir, 'acme.json')
  change?.(config)
  const configFile = join(dir, 'traefik.yml')
  writeFileSync(configFile, stringify(config))

  const [command = '', ...args] = [...prefix, program.path, `--configFile=${configFile}`]
  const child = spawn(command, args, { env: env as NodeJS.ProcessEnv, stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk
  })
  const exited = once(child, 'exit')
  t.teardown(async () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    await exited
    rmSync(dir, { recursive: true, force: true })
  })
  const traefik: Traefik = {
    child,
    configFile,
    port: (name) => Number(config.entryPoints[name]?.address.split(':').at(-1)),
    log: () =>
      text
        .split('\n')
        .filter(Boolean)
        .map((line) => JSON.parse(line))
  }
  await eventually(async () => {
    if (child.exitCode !== null) throw new Error(`Traefik ended:\n${text}`)
    const reply = await ask(traefik.port('local'), '/api/health', { host: 'localhost' }).catch(() => undefined)
    // Traefik itself answers 404 while it has no router
    return reply !== undefined && reply.status !== 404
  }, 30_000)
  return traefik
}

export type Question = {
  host?: string
  method?: string
  headers?: http.OutgoingHttpHeaders
  body?: unknown
  /** The client's own loopback address. */
  from?: string
  agent?: http.Agent
}
export type Answer = {
  status: number
  headers: http.IncomingHttpHeaders
  text: string
  json: () => Record<string, unknown>
}

export function ask(port: number, path: string, question: Question = {}): Promise<Answer> {
  return exchange(http.request, { host: '127.0.0.1', port, path, agent: question.agent ?? false }, question)
}

export async function exchange(
  request: typeof http.request,
  target: https.RequestOptions,
  { host, method = 'GET', headers = {}, body, from }: Question
): Promise<Answer> {
  const payload = body === undefined ? undefined : JSON.stringify(body)
  const sent = request({
    ...target,
    method,
    ...(from && { localAddress: from }),
    timeout: 10_000,
    headers: {
      ...(host && { host }),
      ...(payload !== undefined && {
        'content-type': 'application/json',
        'content-length': Buffer.byteLength(payload)
      }),
      ...headers
    }
  })
  sent.on('timeout', () => sent.destroy(new Error('no answer')))
  sent.end(payload)
  const [reply] = (await once(sent, 'response')) as [http.IncomingMessage]
  let text = ''
  for await (const chunk of reply.setEncoding('utf8')) text += chunk
  return { status: reply.statusCode ?? 0, headers: reply.headers, text, json: () => JSON.parse(text) }
}

/** Makes a certificate for domains and their subdomains. Returns the certificate of the authority that signed it. */
export function makeCertificate(dir: string, ...domains: string[]): string {
  const run = (...args: string[]) => execFileSync(openssl.path, args, { cwd: dir, stdio: 'pipe' })
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  run('req', '-x509', ...key, '-subj', '/CN=Authority of the tests', '-keyout', 'ca.key', '-out', 'ca.crt')
  run('req', ...key, '-subj', `/CN=${domains[0]}`, '-keyout', 'server.key', '-out', 'server.csr')
  const names = domains.flatMap((domain) => [`DNS:${domain}`, `DNS:*.${domain}`])
  writeFileSync(join(dir, 'server.ext'), `subjectAltName=${names.join()}\n`)
  const sign = ['-CA', 'ca.crt', '-CAkey', 'ca.key', '-CAcreateserial', '-extfile', 'server.ext']
  run('x509', '-req', '-in', 'server.csr', ...sign, '-out', 'server.crt')
  return readFileSync(join(dir, 'ca.crt'), 'utf8')
}

/**
 * The warnings and errors in Traefik's log. The advice on encoded characters is left out, because it is about routing
 * by path, and here only hosts count. Failed health checks are left out, because a server on a busy machine may be
 * late.
 */
export function complaints(traefik: Traefik): unknown[] {
  return traefik
    .log()
    .filter(({ level }) => level === 'warn' || level === 'error' || level === 'fatal')
    .filter(({ message }) => !/^(Traefik can reject some encoded characters|Health check failed)/.test(String(message)))
}

export const registration = (slug: string) => ({
  tenant: { name: `The ${slug} agency`, slug },
  name: 'Ada',
  email: `owner@${slug}.example`,
  password
})

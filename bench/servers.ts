import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync
} from 'node:fs'
import { createServer } from 'node:net'
import { delimiter, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { adopt, scratch } from './children.ts'
import { baseDomain, type Database, type Dataset, query } from './database.ts'

export const root = join(import.meta.dirname, '..')
const peers = join(import.meta.dirname, 'peers')

export type Server = {
  name: string
  port: number
  pid: number
  /** The time from the start of the process to its first reply. */
  startedInMs: number
  stop(): Promise<void>
}

type Program = { name: string; command: string; args: string[]; env: NodeJS.ProcessEnv; readyPath: string }

/** The environment variables that servers inherit. All others of the bench are left out. */
const inherited = { PATH: process.env.PATH, HOME: process.env.HOME }

/** The folder for uploads, on the same disk as the database. */
export const filesFolder = join(root, 'bench', '.data', 'files')

const startTimeoutMs = 30_000

/** Starts a server and waits until it answers with a status below 500. */
async function start({ name, command, args, env, readyPath }: Program): Promise<Server> {
  const port = await freePort()
  const log = join(scratch, `${name}-${port}.log`)
  const output = openSync(log, 'w')
  const startedAt = performance.now()
  const child = adopt(
    spawn(command, args, {
      // not in the root, which may have a developer's `.env`
      cwd: scratch,
      env: { ...inherited, NODE_ENV: 'production', PORT: String(port), ...env },
      stdio: ['ignore', output, output]
    })
  )
  closeSync(output)
  while (!(await answers(port, readyPath))) {
    const late = performance.now() - startedAt > startTimeoutMs
    if (late) child.kill('SIGKILL')
    if (late || child.exitCode !== null) throw new Error(`${name} did not start:\n${readFileSync(log, 'utf8')}`)
    await sleep(5)
  }
  const startedInMs = performance.now() - startedAt
  return {
    name,
    port,
    pid: child.pid as number,
    startedInMs,
    stop: () => end(child)
  }
}

async function answers(port: number, path: string): Promise<boolean> {
  try {
    const reply = await fetch(`http://127.0.0.1:${port}${path}`)
    await reply.arrayBuffer()
    return reply.status < 500
  } catch {
    return false
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const exited = once(child, 'exit')
  child.kill('SIGTERM')
  const late = setTimeout(() => child.kill('SIGKILL'), 5000)
  await exited
  clearTimeout(late)
}

export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  server.close()
  await once(server, 'close')
  return port
}

/**
 * Starts the product by its own entry point, as in production: with authentication, isolation, limits, logs and
 * metrics. The limits are too high to refuse a request. `folder` holds its sources.
 */
export async function startProduct(
  database: Database,
  { urls }: Dataset,
  env: NodeJS.ProcessEnv = {},
  folder = root
): Promise<Server> {
  const unreached = '100000000/1m'
  const settings = {
    DATABASE_URL: urls.app,
    ...database.secrets,
    BASE_DOMAIN: baseDomain,
    RATE_LIMIT: unreached,
    RATE_LIMIT_KEY: unreached,
    RATE_LIMIT_TENANT: unreached,
    TENANTS_PER_DAY: '0',
    RATE_LIMIT_AUTH: unreached,
    METRICS_PORT: String(await freePort()),
    DATA_DIR: filesFolder
  }
  return start({
    name: 'aggios',
    command: process.execPath,
    args: [join(folder, 'src', 'server.ts')],
    env: { ...settings, ...env },
    readyPath: '/api/v1/health/ready'
  })
}

type Change = { file?: { path: string; replacement: string }; withoutPackages?: string }

/**
 * Copies the product, with another file in place of one of its own, or without the packages of a folder of
 * `node_modules`.
 */
export function copyProduct({ file, withoutPackages }: Change): string {
  const folder = mkdtempSync(join(scratch, 'product-'))
  for (const part of ['src', 'plugins', 'routes', 'db', 'package.json']) {
    cpSync(join(root, part), join(folder, part), { recursive: true })
  }
  if (file) cpSync(join(root, file.replacement), join(folder, file.path))
  mkdirSync(join(folder, 'node_modules'))
  for (const name of readdirSync(join(root, 'node_modules'))) {
    if (name !== withoutPackages) symlinkSync(join(root, 'node_modules', name), join(folder, 'node_modules', name))
  }
  return folder
}

/** Removes all uploads, which would fill the disk over several runs. Call it when no server runs. */
export async function removeUploads({ urls }: Dataset): Promise<void> {
  await query(urls.postgres, 'truncate files, uploads, upload_pieces, storage_usage')
  rmSync(filesFolder, { recursive: true, force: true })
}

const bun = join(import.meta.dirname, 'node_modules', 'bun', 'bin', 'bun.exe')

export const peerPrograms = {
  'fastify-named': { file: 'fastify.ts', command: process.execPath, env: { NAMED: '1' } },
  'fastify-unnamed': { file: 'fastify.ts', command: process.execPath, env: {} },
  express: { file: 'express.ts', command: process.execPath, env: {} },
  nest: { file: 'nest.ts', command: process.execPath, env: {} },
  'hono-bun': { file: 'hono-bun.ts', command: bun, env: {} },
  floor: { file: 'floor.ts', command: process.execPath, env: {} },
  plugins: { file: 'plugins.ts', command: process.execPath, env: {} }
} as const
export type PeerName = keyof typeof peerPrograms

/** The reason why a peer can't run on this machine; undefined when it can. */
export function missingPart(name: PeerName): string | undefined {
  const { command } = peerPrograms[name]
  if (existsSync(command)) return undefined
  return `${name} is left out: npm brought no Bun for ${process.platform}-${process.arch}`
}

/**
 * Starts a peer on the same database. A peer without isolation connects as the superuser, so that row security costs it
 * nothing.
 */
export function startPeer(
  name: PeerName,
  database: Database,
  { urls }: Dataset,
  env: NodeJS.ProcessEnv = {}
): Promise<Server> {
  const { file, command, env: own } = peerPrograms[name]
  const isolated = name === 'plugins'
  return start({
    name,
    command,
    args: [join(peers, file)],
    env: { DATABASE_URL: isolated ? urls.app : urls.postgres, ...(isolated && database.secrets), ...own, ...env },
    readyPath: '/ready'
  })
}

/** Starts a Redis without persistence; undefined when redis-server is not installed. */
export async function startRedis(): Promise<{ url: string; stop(): Promise<void> } | undefined> {
  const command = findProgram('redis-server')
  if (!command) return undefined
  const port = await freePort()
  const args = ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no']
  const child = adopt(spawn(command, args, { stdio: 'ignore', cwd: scratch }))
  return { url: `redis://127.0.0.1:${port}`, stop: () => end(child) }
}

export function findProgram(name: string): string | undefined {
  const candidates = (process.env.PATH ?? '').split(delimiter).map((folder) => join(folder, name))
  return candidates.find((each) => existsSync(each))
}

import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import type { Test } from 'tap'
import { eventually, root } from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'

/*
 * Starts a Redis for one test, as compose.yaml does it: with db/deploy/redis.sh and the user of the product.
 */

const password = 'the0word0that0opens0redis0in0tests'
const server = findProgram('redis-server')
const client = findProgram('redis-cli')

/** Skips a test on a machine without Redis. */
export const needsRedis = { skip: server.skip || client.skip }

export type RedisServer = {
  port: number
  /** The URL with which the product connects. */
  url: string
  /** A connection of a user who may do everything. */
  admin: Redis
  /** Sends a signal to the process: SIGSTOP, SIGCONT, SIGKILL. */
  signal(name: NodeJS.Signals): void
  /** Kills it, and starts an empty one on the same port. */
  restart(): Promise<void>
}

export const unusedRedisUrl = async () => `redis://aggios:${password}@127.0.0.1:${await freePort()}`

export async function startRedis(t: Test, port?: number): Promise<RedisServer> {
  const chosen = port ?? (await freePort())
  const dir = t.testdir()
  let child: ChildProcess | undefined
  const admin = new Redis({ port: chosen, username: 'admin', lazyConnect: true, retryStrategy: () => 50 })
  admin.on('error', () => {})

  async function start(): Promise<void> {
    child = spawn(
      join(root, 'db/deploy/redis.sh'),
      [
        ...['--port', String(chosen), '--bind', '127.0.0.1', '--dir', dir],
        ...['--user', 'admin', 'on', 'nopass', '~*', '&*', '+@all']
      ],
      { env: { PATH: process.env.PATH, REDIS_PASSWORD: password }, stdio: 'ignore' }
    )
    const answers = () =>
      admin.ping().then(
        (reply) => reply === 'PONG',
        () => false
      )
    // the client goes on trying by itself; asked to connect once more it would only say that it already does
    if (admin.status === 'wait') admin.connect().catch(() => {})
    await eventually(answers, 30_000)
  }

  async function end(): Promise<void> {
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGKILL')
    await exited
  }

  t.teardown(async () => {
    admin.disconnect()
    await end()
  })
  await start()
  return {
    port: chosen,
    url: `redis://aggios:${password}@127.0.0.1:${chosen}`,
    admin,
    signal: (name) => void child?.kill(name),
    async restart() {
      await end()
      await start()
    }
  }
}

/** Every key with its remaining milliseconds. A key that does not expire has a negative number. */
export async function keysOf(admin: Redis): Promise<[name: string, ttl: number][]> {
  const keys: [string, number][] = []
  for await (const names of admin.scanStream()) {
    for (const name of names as string[]) keys.push([name, await admin.pttl(name)])
  }
  return keys
}

/** How often each command was called since the last reset, by its name in INFO. */
export async function callsOf(admin: Redis): Promise<Record<string, number>> {
  const text = await admin.info('commandstats')
  return Object.fromEntries(
    [...text.matchAll(/^cmdstat_([\w|]+):calls=(\d+)/gm)].map(([, name, calls]) => [name, Number(calls)])
  )
}

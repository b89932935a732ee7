import { createHash } from 'node:crypto'
import type { Redis } from 'ioredis'
import { readSettings as readChosen } from '../../config/environment.ts'
import { isPlain } from '../../config/production.ts'
import { secret } from '../../config/settings.ts'
import { redisUrl } from '../../config/value-readers.ts'
import { Refusal } from '../operator.ts'
import { newSecret, type Rotation } from './rotation.ts'
import { openSecretFile } from './secret-file.ts'

/** Gives the user of REDIS_URL a second password, and makes the servers use it. The one before stays until `finishRedis`. */
export async function rotateRedis(rotation: Rotation): Promise<string> {
  const { env, fleet, step } = rotation
  const file = openSecretFile(env, 'REDIS_URL')
  file.requireWritable()
  if (file.progress() === undefined) {
    const url = new URL(file.read())
    const password = newSecret()
    await asAdministrator(rotation, (redis) => redis.call('ACL', 'SETUSER', userOf(url), `>${password}`))
    step(`${userOf(url)} has a second password`)
    url.password = password
    file.write(url.href)
    // a run that was interrupted before this line gives the user one more password, and `finishRedis` removes all but the last
    file.remember({ step: 'switched' })
  }
  await fleet.waitFor('REDIS_URL', [file.read()])
  step('every process uses the new password')
  return 'The old password can be removed now: rotate redis --finish'
}

/** Removes all passwords but the one in use. */
export async function finishRedis(rotation: Rotation): Promise<string> {
  const file = openSecretFile(rotation.env, 'REDIS_URL')
  const url = new URL(file.read())
  await rotation.fleet.waitFor('REDIS_URL', [file.read()])
  const current = createHash('sha256').update(decodeURIComponent(url.password)).digest('hex')
  await asAdministrator(rotation, async (redis) => {
    const described = (await redis.call('ACL', 'GETUSER', userOf(url))) as unknown[]
    const digests = described[described.indexOf('passwords') + 1] as string[]
    if (!digests.includes(current)) throw new Refusal(`${file.path} has a password that Redis does not know`)
    const old = digests.filter((digest) => digest !== current)
    if (old.length > 0) await redis.call('ACL', 'SETUSER', userOf(url), ...old.map((digest) => `!${digest}`))
  })
  file.forget()
  return 'done: the old password is of no use any more'
}

const userOf = (url: URL) => decodeURIComponent(url.username) || 'default'

/** A user of Redis that may change the one of REDIS_URL: it is given to this command, and to no server. */
async function asAdministrator({ config, env }: Rotation, work: (redis: Redis) => Promise<unknown>): Promise<void> {
  const { values, problems } = readChosen(env, { url: secret('REDIS_ADMIN_URL', redisUrl) })
  if (config.nodeEnv === 'production' && isPlain(values.url, 'redis:')) {
    problems.push('REDIS_ADMIN_URL: must begin with rediss:// to another host in production')
  }
  if (problems.length > 0) throw new Refusal(problems.join('\n'))
  if (values.url === undefined)
    throw new Refusal('REDIS_ADMIN_URL: must lead to Redis as a user that may change the one of REDIS_URL')
  const { Redis } = await import('ioredis')
  const redis = new Redis(values.url, {
    ...{ lazyConnect: true, retryStrategy: () => null, maxRetriesPerRequest: 0 },
    // both send commands that this user needs no permission for otherwise
    ...{ enableReadyCheck: false, disableClientInfo: true }
  })
  redis.on('error', () => {})
  try {
    await redis.connect()
    await work(redis)
  } finally {
    redis.disconnect()
  }
}

import type { Bench, Scenario } from '../bench.ts'
import { productMix } from '../contenders.ts'
import { comparePair } from '../pairs.ts'
import { startProduct, startRedis } from '../servers.ts'

/** Compares a mix of reads and writes with the same mix of a server that remembers no reads. */
async function compareMemory(bench: Bench, name: string, env: NodeJS.ProcessEnv): Promise<void> {
  const dataset = await bench.thousand()
  const [on, off] = await Promise.all([
    startProduct(bench.database, dataset, { ...env, READ_MEMORY: 'on' }),
    startProduct(bench.database, dataset, { ...env, READ_MEMORY: 'off' })
  ])
  const pair = await comparePair(
    bench.conditions(),
    productMix(on, dataset, 'remembered'),
    productMix(off, dataset, 'from the database')
  )
  bench.pair(name, pair)
  await Promise.all([on.stop(), off.stop()])
}

export const mix: Scenario = {
  name: 'mix',
  about: '90 % GET and 10 % PATCH /users/me of 1,000 people, with READ_MEMORY on against off',
  inQuick: false,
  async run(bench) {
    await compareMemory(bench, 'mix', {})
    const redis = await startRedis()
    if (!redis) return bench.skip('mix/two processes', 'there is no redis-server')
    await compareMemory(bench, 'mix/two processes', { WEB_CONCURRENCY: '2', REDIS_URL: redis.url })
    await redis.stop()
  }
}

import type { Scenario } from '../bench.ts'
import {
  floorReads,
  peerLists,
  peerReads,
  productFreshReads,
  productLimited,
  productLists,
  productReads,
  productRefusals,
  productUnchanged
} from '../contenders.ts'
import { comparePair } from '../pairs.ts'
import { missingPart, type PeerName, startPeer, startProduct, startRedis } from '../servers.ts'

/** The peers of quick runs too. */
const always: PeerName[] = ['fastify-named', 'hono-bun', 'express', 'nest']

export const me: Scenario = {
  name: 'me',
  about: 'GET /users/me, everything on, against each peer with one bare query',
  inQuick: true,
  async run(bench) {
    const dataset = await bench.thousand()
    const names: PeerName[] = bench.quick ? always : [...always, 'fastify-unnamed', 'plugins']
    const redis = await startRedis()
    const shared = redis && { REDIS_URL: redis.url }
    const product = await startProduct(bench.database, dataset, shared)
    const ours = productReads(product, dataset)
    const floor = await startPeer('floor', bench.database, dataset)
    bench.pair('me/floor', await comparePair(bench.conditions(), ours, floorReads(floor, dataset)))
    await floor.stop()
    for (const name of names) {
      const missing = missingPart(name)
      if (missing) {
        bench.skip(`me/${name}`, missing)
        continue
      }
      const peer = await startPeer(name, bench.database, dataset, shared)
      const theirs = peerReads(peer, dataset)
      bench.pair(`me/${name}`, await comparePair(bench.conditions(), ours, theirs))
      if (name === 'fastify-named') {
        const fresh = productFreshReads(product, dataset)
        bench.pair('me/database', await comparePair(bench.conditions(), fresh, theirs))
      }
      await peer.stop()
    }
    await redis?.stop()
    await product.stop()
  }
}

/** A flood consists of requests that are refused, so a refusal must cost less than a reply. */
export const refusals: Scenario = {
  name: 'refusals',
  about: 'GET /users/me without a token, with a forged one, and over a limit, against the same answered',
  inQuick: false,
  async run(bench) {
    const dataset = await bench.thousand()
    const product = await startProduct(bench.database, dataset)
    const reads = productReads(product, dataset)
    for (const token of ['no token', 'a forged token'] as const) {
      const pair = await comparePair(bench.conditions(), productRefusals(product, dataset, token), reads)
      bench.pair(`refusals/${token}`, pair)
    }
    const limited = await startProduct(bench.database, dataset, { RATE_LIMIT: '1/1h' })
    const pair = await comparePair(bench.conditions(), productLimited(limited, dataset), reads)
    bench.pair('refusals/over a limit', pair)
    await Promise.all([product.stop(), limited.stop()])
  }
}

export const replies: Scenario = {
  name: 'replies',
  about: '304 against GET /users/me; a list of 25 against the same of bare Fastify',
  inQuick: true,
  async run(bench) {
    const dataset = await bench.thousand()
    const product = await startProduct(bench.database, dataset)
    const reads = productReads(product, dataset)
    bench.pair('304', await comparePair(bench.conditions(), await productUnchanged(product, dataset), reads))
    const peer = await startPeer('fastify-named', bench.database, dataset)
    bench.pair(
      'list25',
      await comparePair(bench.conditions(), productLists(product, dataset), peerLists(peer, dataset))
    )
    await Promise.all([peer.stop(), product.stop()])
  }
}

export const concurrency: Scenario = {
  name: 'concurrency',
  about: 'GET /users/me against bare Fastify with 1, 64 and 512 connections',
  inQuick: false,
  async run(bench) {
    const dataset = await bench.thousand()
    const product = await startProduct(bench.database, dataset)
    const peer = await startPeer('fastify-named', bench.database, dataset)
    for (const connections of [1, 64, 512]) {
      const conditions = bench.conditions(connections)
      const pair = await comparePair(conditions, productReads(product, dataset), peerReads(peer, dataset))
      bench.pair(`concurrency/${connections}`, pair)
    }
    await peer.stop()
    await product.stop()
  }
}

/** Compares two servers on the same rows: in one database the owner of the tables has switched row security off. */
export const isolation: Scenario = {
  name: 'isolation',
  about: 'row security on against off, through HTTP',
  inQuick: true,
  async run(bench) {
    const dataset = await bench.thousand()
    const open = await bench.withoutRowSecurity()
    const [walled, unwalled] = await Promise.all([
      startProduct(bench.database, dataset, { READ_MEMORY: 'off' }),
      startProduct(bench.database, open, { READ_MEMORY: 'off' })
    ])
    const pair = await comparePair(
      bench.conditions(),
      productReads(walled, dataset, 'row security on'),
      productReads(unwalled, open, 'off')
    )
    bench.pair('rls', pair)
    await Promise.all([walled.stop(), unwalled.stop()])
  }
}

/** Both datasets have the same number of people. The requests are spread over as many agencies as the load can hold. */
export const tenants: Scenario = {
  name: 'tenants',
  about: '100,000 agencies against 1,000, traffic spread over all',
  inQuick: true,
  async run(bench) {
    const [few, many] = [await bench.thousand(), await bench.hundredThousand()]
    const servers = await Promise.all([startProduct(bench.database, many), startProduct(bench.database, few)])
    const pair = await comparePair(
      bench.conditions(),
      productReads(servers[0], many, '100,000 agencies', bench.quick ? 5_000 : 20_000),
      productReads(servers[1], few, '1,000 agencies', bench.quick ? 5_000 : 20_000)
    )
    bench.pair('tenants', pair)
    await Promise.all(servers.map((server) => server.stop()))
  }
}

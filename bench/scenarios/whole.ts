import { setTimeout as sleep } from 'node:timers/promises'
import { settings } from '../../src/config.ts'
import type { Bench, Scenario } from '../bench.ts'
import { type NextRequest, runCallers } from '../callers.ts'
import { ask, pick, productReads } from '../contenders.ts'
import type { Dataset } from '../database.ts'
import { comparePair, measure, warmUp } from '../pairs.ts'
import { usageOf } from '../processes.ts'
import { startProduct } from '../servers.ts'
import { median } from '../statistics.ts'

/** The server as a whole: how many processes, how soon it is there, what it keeps in memory. */

export const processes: Scenario = {
  name: 'processes',
  about: 'GET /users/me by two processes against one',
  inQuick: false,
  async run(bench) {
    const known = Object.values(settings).some(({ name }) => name === 'WEB_CONCURRENCY')
    if (!known) return bench.skip('processes', 'the product has no WEB_CONCURRENCY')
    const dataset = await bench.thousand()
    const [two, one] = await Promise.all([
      startProduct(bench.database, dataset, { WEB_CONCURRENCY: '2' }),
      startProduct(bench.database, dataset, { WEB_CONCURRENCY: '1' })
    ])
    const pair = await comparePair(
      bench.conditions(),
      productReads(two, dataset, 'two processes'),
      productReads(one, dataset, 'one')
    )
    bench.pair('processes', pair)
    await Promise.all([two.stop(), one.stop()])
  }
}

export const start: Scenario = {
  name: 'start',
  about: 'from the start of the process to its first reply, when everything has been read before',
  inQuick: true,
  async run(bench) {
    const dataset = await bench.thousand()
    const times: number[] = []
    for (let turn = 0; turn <= bench.conditions().pairs; turn++) {
      const product = await startProduct(bench.database, dataset)
      // the first one warms the file cache
      if (turn > 0) times.push(product.startedInMs)
      await product.stop()
    }
    bench.figure({ name: 'start', value: median(times), unit: 'ms' })
  }
}

/** Growth of a fresh process by everybody's first request and the second, when memory has settled. */
async function growth(bench: Bench, dataset: Dataset): Promise<number> {
  const product = await startProduct(bench.database, dataset)
  // what any traffic costs is not what people cost
  await measure(bench.conditions(), { ...productReads(product, { ...dataset, users: dataset.users.slice(0, 1) }) })
  await sleep(1000)
  const before = usageOf(product.pid).memory_bytes
  const everybody = productReads(product, dataset, 'aggios', dataset.users.length)
  await warmUp(bench.conditions(), everybody)
  await measure(bench.conditions(), everybody)
  await sleep(1000)
  const grown = usageOf(product.pid).memory_bytes - before
  await product.stop()
  return grown / 1024
}

export const memory: Scenario = {
  name: 'memory',
  about: 'what 1,000 signed-in people, and 1,000 agencies, add to a process',
  inQuick: false,
  async run(bench) {
    const [few, many] = [await bench.thousand(), await bench.hundredThousand()]
    const thousands = few.users.length / 1000
    const people = await growth(bench, few)
    const both = await growth(bench, many)
    bench.figure({ name: 'memory/1,000 sessions', value: people / thousands, unit: 'KB' })
    bench.figure({ name: 'memory/1,000 tenants', value: (both - people) / thousands, unit: 'KB' })
  }
}

const megabyte = 1024 ** 2
const uploaders = 8

export const upload: Scenario = {
  name: 'upload',
  about: 'a file of 1 MB by POST /files, eight at once',
  inQuick: false,
  async run(bench) {
    const dataset = await bench.thousand()
    const product = await startProduct(bench.database, dataset)
    const callers = pick(dataset.users, uploaders).map(({ host, access_token }): NextRequest => {
      const boundary = 'bench-boundary'
      const head = `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="noise.txt"\r\ncontent-type: text/plain\r\n\r\n`
      const body = `${head}${'aggios '.repeat(megabyte / 7)}\r\n--${boundary}--\r\n`
      const type = `multipart/form-data; boundary=${boundary}`
      const headers = { host, authorization: `Bearer ${access_token}`, 'content-type': type }
      return (last) => {
        if (last && last.status !== 201) throw new Error(`answered ${last.status}: ${last.body}`)
        return { method: 'POST', path: '/api/v1/files', headers, body }
      }
    })
    const [first] = callers
    const { status } = await ask(product, (first as NextRequest)(undefined))
    if (status === 404) {
      bench.skip('upload', 'the product has no POST /api/v1/files')
    } else {
      const called = await runCallers(product, callers, bench.conditions().seconds * 2)
      bench.figure({ name: 'upload', value: called.perSecond, unit: '/s' })
      bench.figure({ name: 'upload/p50', value: called.p50, unit: 'ms' })
    }
    await product.stop()
  }
}

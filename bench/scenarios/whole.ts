import { mkdir, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { settings } from '../../src/config/settings.ts'
import { partBytes } from '../../src/files/store/object-writer.ts'
import { content, createFileClient } from '../../test/large-file.ts'
import type { Bench, Scenario } from '../bench.ts'
import { type NextRequest, runCallers } from '../callers.ts'
import { ask, pick, productReads } from '../contenders.ts'
import type { Dataset } from '../database.ts'
import { undisturbed } from '../disturbance.ts'
import { liveBytes } from '../heap.ts'
import { comparePair, measure, warmUp } from '../pairs.ts'
import { filesFolder, freePort, removeUploads, startProduct, startRedis } from '../servers.ts'
import { median } from '../statistics.ts'

/*
 * Scenarios of the whole server: number of processes, start time, memory, uploads.
 */

export const processes: Scenario = {
  name: 'processes',
  about: 'GET /users/me by two processes against one, with 1, 64 and 512 connections',
  inQuick: false,
  async run(bench) {
    const known = Object.values(settings).some(({ name }) => name === 'WEB_CONCURRENCY')
    if (!known) return bench.skip('processes', 'the product has no WEB_CONCURRENCY')
    const dataset = await bench.thousand()
    // both remember reads, with Redis or without
    const redis = await startRedis()
    const env = { READ_MEMORY: 'on', ...(redis && { REDIS_URL: redis.url }) }
    const [two, one] = await Promise.all([
      startProduct(bench.database, dataset, { ...env, WEB_CONCURRENCY: '2' }),
      startProduct(bench.database, dataset, { ...env, WEB_CONCURRENCY: '1' })
    ])
    const reads = [productReads(two, dataset, 'two processes'), productReads(one, dataset, 'one')] as const
    for (const connections of [1, 64, 512]) {
      bench.pair(`processes/${connections}`, await comparePair(bench.conditions(connections), ...reads))
    }
    await Promise.all([two.stop(), one.stop()])
    await redis?.stop()
  }
}

export const start: Scenario = {
  name: 'start',
  about: 'from the start of the process to its first reply, when everything has been read before',
  inQuick: true,
  async run(bench) {
    const dataset = await bench.thousand()
    const times: number[] = []
    const { pairs, tries } = bench.conditions()
    const startOnce = async () => {
      const product = await startProduct(bench.database, dataset)
      await product.stop()
      return product.startedInMs
    }
    // the first start warms the file cache
    await startOnce()
    for (let turn = 0; turn < pairs; turn++) times.push(await undisturbed(startOnce, tries))
    bench.figure({ name: 'start', value: median(times), unit: 'ms' })
  }
}

/** Live memory of a process in kilobytes, after at least two requests by each of `people`. */
async function memoryAfter(bench: Bench, dataset: Dataset, people: number): Promise<number> {
  const inspectorPort = await freePort()
  const product = await startProduct(bench.database, dataset, { NODE_OPTIONS: `--inspect-port=${inspectorPort}` })
  const all = productReads(product, dataset, 'aggios', people)
  await warmUp(bench.conditions(), all)
  await measure(bench.conditions(), all)
  await sleep(1000)
  const kilobytes = (await liveBytes(product.pid, inspectorPort)) / 1024
  await product.stop()
  return kilobytes
}

/**
 * Live memory per thousand people in kilobytes: the difference between many and few people, without the cost of traffic
 * itself.
 */
async function memoryOfThousand(bench: Bench, dataset: Dataset): Promise<number> {
  const most = dataset.users.length
  const few = Math.floor(most / 10)
  return ((await memoryAfter(bench, dataset, most)) - (await memoryAfter(bench, dataset, few))) / ((most - few) / 1000)
}

export const memory: Scenario = {
  name: 'memory',
  about: 'what 1,000 signed-in people, and 1,000 agencies, add to a process',
  inQuick: false,
  async run(bench) {
    const people = await memoryOfThousand(bench, await bench.thousand())
    // each of these people is of another agency
    const both = await memoryOfThousand(bench, await bench.hundredThousand())
    bench.figure({ name: 'memory/1,000 sessions', value: people, unit: 'KB' })
    bench.figure({ name: 'memory/1,000 tenants', value: both - people, unit: 'KB' })
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
    await removeUploads(dataset)
  }
}

const largeMebibytes = 256
const largeRounds = 4

export const largeFile: Scenario = {
  name: 'large-file',
  about: 'a file of 256 MiB by POST /files, against a program that writes the same bytes to the same disk',
  inQuick: false,
  async run(bench) {
    const dataset = await bench.thousand()
    const product = await startProduct(bench.database, dataset, { MAX_FILE_SIZE: '1GiB' })
    const [user] = pick(dataset.users, 1)
    if (!user) throw new Error('the set of data has no users')
    const client = createFileClient(product.port, { host: user.host, authorization: `Bearer ${user.access_token}` })
    await client.remove(await client.upload(8))
    const shares: number[] = []
    const speeds: number[] = []
    // in turns, so that other load on the machine affects both
    for (let round = 0; round < largeRounds; round++) {
      const raw = await timeOf(() => writeToDisk(largeMebibytes))
      let file = ''
      const uploading = await timeOf(async () => {
        file = await client.upload(largeMebibytes)
      })
      await client.remove(file)
      shares.push(raw / uploading)
      speeds.push((largeMebibytes / uploading) * 1000)
    }
    bench.figure({ name: 'large-file/raw', value: median(shares), unit: 'ratio' })
    bench.figure({ name: 'large-file', value: median(speeds), unit: '/s', detail: 'MiB' })
    await product.stop()
    await removeUploads(dataset)
  }
}

async function timeOf(work: () => Promise<void>): Promise<number> {
  const startedAt = performance.now()
  await work()
  return performance.now() - startedAt
}

/** Writes a file as the product does, and nothing else. The bytes are on the disk when it resolves. */
async function writeToDisk(mebibytes: number): Promise<void> {
  const folder = join(filesFolder, 'raw')
  await mkdir(folder, { recursive: true })
  const file = await open(join(folder, 'raw'), 'w')
  let unsynced = 0
  for (const each of content(mebibytes)) {
    await file.write(each)
    unsynced += each.length
    if (unsynced < partBytes) continue
    await file.datasync()
    unsynced = 0
  }
  await file.sync()
  await file.close()
  await rm(folder, { recursive: true })
}

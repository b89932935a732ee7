import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Bench, Scenario } from '../bench.ts'
import { measureBoth } from '../pairs.ts'
import { type Server, startProduct } from '../servers.ts'
import { quantile } from '../statistics.ts'

const type = 'tenant.updated'
const pauseMs = 20
/** A delivery that takes longer than this ends the scenario. */
const lateMs = 15_000
const password = 'correct horse battery staple'

/** Sends a request of an agency's owner. Throws for a refusal. */
type Owner = (method: string, path: string, body?: object) => Promise<{ id: string }>

async function register({ port }: Server, slug: string): Promise<Owner> {
  async function send(method: string, path: string, body?: object, token?: string) {
    const reply = await fetch(`http://127.0.0.1:${port}/api/v1${path}`, {
      method,
      headers: {
        ...(body && { 'content-type': 'application/json' }),
        ...(token && { authorization: `Bearer ${token}` })
      },
      ...(body && { body: JSON.stringify(body) })
    })
    const replied = await reply.text()
    if (!reply.ok) throw new Error(`${method} ${path}: ${reply.status} ${replied}`)
    return replied === '' ? {} : JSON.parse(replied)
  }
  const tenant = { name: slug, slug }
  const person = { name: 'Owner', email: `owner@${slug}.example`, password }
  const { access_token } = await send('POST', '/auth/register', { tenant, ...person })
  return (method, path, body) => send(method, path, body, access_token)
}

/** A receiver on this machine. `arrivals` has the time at which the event of an agency's new name first arrived. */
async function startReceiver(answer: (response: ServerResponse) => void) {
  const arrivals = new Map<string, number>()
  const server = createServer(async (request, response) => {
    const { data } = JSON.parse(await text(request))
    const { name } = data.detail.after
    if (!arrivals.has(name)) arrivals.set(name, performance.now())
    answer(response)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return { url, arrivals, hangUp: () => server.closeAllConnections(), close: () => void server.close() }
}

/** Measures how long the events of an agency take to its endpoint, while another agency's endpoint never answers. */
async function run(bench: Bench): Promise<void> {
  const { pairs, seconds, tries } = bench.conditions()
  // in production, endpoints on this machine are refused
  const server = await startProduct(bench.database, await bench.thousand(), { NODE_ENV: 'development' })
  const good = await startReceiver((response) => void response.end())
  const silent = await startReceiver(() => {})
  const run = Date.now().toString(36)
  const [watched, neighbour] = [await register(server, `watched-${run}`), await register(server, `neighbour-${run}`)]
  await watched('POST', '/webhooks', { url: good.url, event_types: [type] })
  let changes = 0

  /** The time from the reply to each change of the watched agency until its event arrived, in milliseconds. */
  async function measure(neighbourUrl: string): Promise<number[]> {
    const { id } = await neighbour('POST', '/webhooks', { url: neighbourUrl, event_types: [type] })
    const changedAt = new Map<string, number>()
    const endsAt = performance.now() + seconds * 1000
    while (performance.now() < endsAt) {
      const name = `Change ${++changes}`
      await neighbour('PATCH', '/tenant', { name: `${name} of the neighbour` })
      await watched('PATCH', '/tenant', { name })
      changedAt.set(name, performance.now())
      await sleep(pauseMs)
    }
    for (const name of changedAt.keys()) {
      const waitsUntil = performance.now() + lateMs
      while (!good.arrivals.has(name)) {
        if (performance.now() > waitsUntil) throw new Error(`the event of ${name} did not arrive`)
        await sleep(5)
      }
    }
    await neighbour('DELETE', `/webhooks/${id}`)
    silent.hangUp()
    return [...changedAt].map(([name, at]) => Math.max(0, (good.arrivals.get(name) as number) - at))
  }

  await measure(good.url)
  const beside = { silent: [] as number[], answering: [] as number[] }
  for (let turn = 0; turn < pairs; turn++) {
    const [slow, fast] = await measureBoth(
      turn,
      tries,
      () => measure(silent.url),
      () => measure(good.url)
    )
    beside.silent.push(...slow)
    beside.answering.push(...fast)
  }
  await server.stop()
  for (const each of [good, silent]) {
    each.hangUp()
    each.close()
  }
  const [slow, fast] = [quantile(beside.silent, 0.99), quantile(beside.answering, 0.99)]
  bench.figure({
    name: 'webhooks/p99',
    value: slow / fast,
    unit: 'ratio',
    detail: `${slow.toFixed(1)} against ${fast.toFixed(1)} ms, of ${beside.silent.length} and ${beside.answering.length} events`
  })
}

export const webhooks: Scenario = {
  name: 'webhooks',
  about:
    'the time until an event reaches the endpoint of its agency, beside an agency whose endpoint never answers against one that does',
  inQuick: false,
  run
}

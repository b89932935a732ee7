import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { stringify } from 'yaml'
import type { Line } from './dashboard-drawing.ts'
import type { Dashboard, Panel } from './dashboard-panels.ts'
import type { DatabaseUrls } from './databases.ts'
import {
  eventually,
  isReady,
  type Owner,
  password,
  root,
  startServer,
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { freePort } from './ports.ts'

/*
 * The product under a little load, watched by a real Prometheus with the rules of the product.
 */

const rules = ['alerts', 'objectives'].map((name) => join(root, `deploy/observability/prometheus/${name}.yml`))

/** Starts two workers and a Prometheus that reads them each second. `load` makes requests for so many milliseconds. */
export async function startWatched(t: Owner, database: DatabaseUrls, prometheus: string) {
  const [internalPort, port] = [await freePort(), await freePort()]
  const settings = { WEB_CONCURRENCY: '2', METRICS_PORT: String(internalPort), DATABASE_POOL: '4' }
  const server = await startServer(t, testEnvironment(database, { ...settings, RATE_LIMIT_AUTH: '2000/1m' }), {
    ready: false
  })
  await eventually(() => isReady(server), 180_000)
  const folder = temporaryFolder(t)
  const config = {
    global: { scrape_interval: '1s', evaluation_interval: '2s' },
    rule_files: rules,
    scrape_configs: [{ job_name: 'aggios', static_configs: [{ targets: [`127.0.0.1:${internalPort}`] }] }]
  }
  writeFileSync(join(folder, 'prometheus.yml'), stringify(config))
  const options = { 'config.file': join(folder, 'prometheus.yml'), 'storage.tsdb.path': join(folder, 'data') }
  const words = Object.entries({ ...options, 'web.listen-address': `127.0.0.1:${port}`, 'log.level': 'warn' })
  const child = spawn(
    prometheus,
    words.map(([name, value]) => `--${name}=${value}`),
    { stdio: 'ignore' }
  )
  t.teardown(async () => {
    child.kill('SIGTERM')
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
  })
  const ask = async (path: string, query: Record<string, string>) => {
    const reply = await fetch(`http://127.0.0.1:${port}/api/v1/${path}?${new URLSearchParams(query)}`)
    const { status, error, data } = (await reply.json()) as Answer
    if (status !== 'success') throw new Error(`${query.query}: ${error}`)
    return data.result
  }
  await eventually(() =>
    ask('query', { query: 'aggios_worker_up' }).then(
      ({ length }) => length === 2,
      () => false
    )
  )
  const startedAt = Date.now() / 1000

  /** The series of each panel since the start. A rate looks at the last `window`. */
  async function linesOf({ panels }: Dashboard, window: string): Promise<Line[][]> {
    const end = Date.now() / 1000
    const range = { start: String(startedAt), end: String(end), step: String(Math.max(1, (end - startedAt) / 150)) }
    return Promise.all(panels.map((panel) => linesOfPanel(panel, window, range)))
  }

  async function linesOfPanel({ queries }: Panel, window: string, range: Record<string, string>): Promise<Line[]> {
    const all = await Promise.all(
      queries.map(async ({ expr, legend }) => {
        const found = await ask('query_range', { ...range, query: expr.replaceAll('$__rate_interval', window) })
        return found.map(({ metric, values }) => ({
          name: legend.replaceAll(/\{\{(\w+)\}\}/g, (_, label) => metric[label] ?? '').trim() || 'none',
          points: values
            .map(([time, value]) => [time, Number(value)] as [number, number])
            .filter(([, value]) => Number.isFinite(value))
        }))
      })
    )
    return all.flat().filter(({ points }) => points.length > 0)
  }

  return { linesOf, load: (ms: number) => work(server.url, ms) }
}

type Answer = {
  status: string
  error?: string
  data: { result: { metric: Record<string, string>; values: [number, string][] }[] }
}

/** People who sign in, read, write and mistype, in four lines at once, more and more of them. */
async function work(url: string, ms: number): Promise<void> {
  const call = async (method: string, path: string, body?: object, token?: string) => {
    const headers = {
      ...(body && { 'content-type': 'application/json' }),
      ...(token !== undefined && { authorization: `Bearer ${token}` })
    }
    const reply = await fetch(`${url}/api/v1${path}`, { method, headers, ...(body && { body: JSON.stringify(body) }) })
    return (await reply.json().catch(() => ({}))) as { access_token: string; refresh_token: string }
  }
  const end = performance.now() + ms
  const slug = `watched-${Date.now()}`
  const email = `owner@${slug}.example`
  let owner = await call('POST', '/auth/register', { tenant: { name: slug, slug }, name: 'Ada', email, password })
  async function line(pauseMs: number): Promise<void> {
    for (let turn = 0; performance.now() < end; turn++) {
      await call('GET', '/users/me', undefined, owner.access_token)
      await call(
        'GET',
        ['/files', '/members', '/audit-events', '/tenant'][turn % 4] as string,
        undefined,
        owner.access_token
      )
      // a person has a hundred sessions at most, so the newest one is used
      if (turn % 10 === 3) owner = await call('POST', '/auth/login', { email, password })
      if (turn % 25 === 7) await call('POST', '/auth/login', { email, password: 'a wrong password' })
      if (turn % 15 === 5) await call('PATCH', '/users/me', { name: `Ada ${turn}` }, owner.access_token)
      if (turn % 20 === 9) await call('GET', `/files/${slug}`, undefined, owner.access_token)
      await sleep(pauseMs)
    }
  }
  const lines = [0, 1, 2, 3].map(async (index) => {
    await sleep((index * ms) / 8)
    await line(60)
  })
  await Promise.all(lines)
  await call('POST', '/auth/refresh', { refresh_token: owner.refresh_token })
}

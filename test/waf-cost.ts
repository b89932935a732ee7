import { readFileSync } from 'node:fs'
import http from 'node:http'
import type { Owner } from './harness.ts'
import { freePort } from './ports.ts'
import { ask, program, startTraefik } from './traefik.ts'
import { startTaker, startWaf, waf } from './waf.ts'

/*
 * `npm run cost:waf`: the CPU time that Traefik and the WAF take for a request, with the WAF and without it, in front of a server that
 * answers at once. Each figure is the median of three rounds, and the rounds of both take turns.
 */

const rounds = 3
const requests = 300
const kinds = {
  'a read with a token': { method: 'GET', path: '/api/v1/users/me', body: '' },
  'a change of 1 KB of JSON': {
    method: 'PATCH',
    path: '/api/v1/tenant',
    body: JSON.stringify({ name: 'x'.repeat(1000) })
  },
  'a part of a file of 1 MiB': {
    method: 'PATCH',
    path: '/api/v1/files/resumable/01a22797-2da6-7058-a87a-40d7768458bd/content',
    body: 'x'.repeat(2 ** 20)
  }
}

for (const { skip } of [waf, program]) {
  if (skip === false) continue
  process.stderr.write(`${skip}\n`)
  process.exit(1)
}
const works: (() => unknown)[] = []
const owner: Owner = { teardown: (work) => works.push(work) }
const { url } = await startTaker(owner)
const wafPort = await freePort()
const direct = await startTraefik(owner, { BACKEND_URLS: url, EDGE_RATE_LIMIT: '0' })
const judged = await startTraefik(owner, {
  BACKEND_URLS: url,
  EDGE_RATE_LIMIT: '0',
  WAF_URL: `http://127.0.0.1:${wafPort}`
})
const wall = await startWaf(owner, `http://127.0.0.1:${judged.port('judged')}`, wafPort)
const host = 'acme.localhost'
while ((await ask(judged.port('local'), '/', { host })).status !== 204)
  await new Promise((done) => setTimeout(done, 200))

/** CPU time of a process so far, in microseconds. */
function cpuOf(pid = 0): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const [user, system] = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .slice(11, 13)
    .map(Number)
  return ((user ?? 0) + (system ?? 0)) * 10_000
}

async function measure(
  traefik: typeof direct,
  processes: (number | undefined)[],
  kind: keyof typeof kinds
): Promise<number> {
  const { method, path, body } = kinds[kind]
  const agent = new http.Agent({ keepAlive: true, maxSockets: 8 })
  const type =
    method === 'GET'
      ? {}
      : { 'content-type': /resumable/.test(path) ? 'application/offset+octet-stream' : 'application/json' }
  const headers = { host, 'user-agent': 'Mozilla/5.0', authorization: `Bearer ${'x'.repeat(400)}`, ...type }
  let left = body.length > 10_000 ? requests / 10 : requests
  const count = left
  const before = processes.reduce<number>((sum, pid) => sum + cpuOf(pid), 0)
  const send = () =>
    new Promise<void>((done, fail) => {
      const sending = http.request({ port: traefik.port('local'), agent, method, path, headers }, (reply) => {
        if (reply.statusCode !== 204) fail(new Error(`${path}: ${reply.statusCode}`))
        reply.resume().on('end', done)
      })
      sending.on('error', fail).end(body)
    })
  const work = async () => {
    while (left-- > 0) await send()
  }
  await Promise.all(Array.from({ length: 8 }, work))
  agent.destroy()
  return (processes.reduce<number>((sum, pid) => sum + cpuOf(pid), 0) - before) / count
}

const median = (values: number[]) => [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)] ?? 0
for (const kind of Object.keys(kinds) as (keyof typeof kinds)[]) {
  const without: number[] = []
  const including: number[] = []
  for (let round = 0; round < rounds; round++) {
    without.push(await measure(direct, [direct.child.pid], kind))
    including.push(await measure(judged, [judged.child.pid, wall.child.pid], kind))
  }
  process.stdout.write(
    `${kind}: ${median(without).toFixed(0)} µs without the WAF, ${median(including).toFixed(0)} µs with it\n`
  )
}
for (const work of works.reverse()) await work()

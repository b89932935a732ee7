import { v7 as uuidv7 } from 'uuid'
import { createSecret, digestOf, formatKey } from '../../src/auth/api-keys/key-format.ts'
import type { Bench, Scenario } from '../bench.ts'
import { pick } from '../contenders.ts'
import { type Dataset, query, type SeededUser } from '../database.ts'
import type { HttpRequest } from '../load.ts'
import { measureBoth } from '../pairs.ts'
import { usageOf } from '../processes.ts'
import { startProduct } from '../servers.ts'
import { spreadOf } from '../statistics.ts'

const callers = 32

const read = (host: string, token: string): HttpRequest => ({
  method: 'GET',
  path: '/api/v1/tenant',
  headers: { host, authorization: `Bearer ${token}` }
})

/** Plants a key of the person's agency. Resolves to the key. */
async function plantKey({ urls }: Dataset, { tenant_id, user_id }: SeededUser): Promise<string> {
  const [id, secret] = [uuidv7(), createSecret()]
  await query(
    urls.postgres,
    `insert into api_keys (tenant_id, id, name, role, permissions, cidrs, secret_hash, created_by)
     values ($1, $2, 'bench', 'viewer', '{tenant:read}', '{127.0.0.0/8}', $3, $4)`,
    [tenant_id, id, digestOf(secret), user_id]
  )
  return formatKey({ tenant_id, id, secret })
}

/** Compares reads with an API key, which may be used from one network, and reads with a person's token. */
async function run(bench: Bench): Promise<void> {
  const { pairs, seconds, tries, connections } = bench.conditions()
  const dataset = await bench.thousand()
  const server = await startProduct(bench.database, dataset, {})
  const people = pick(dataset.users, callers)
  const byPeople = people.map(({ host, access_token }) => read(host, access_token))
  const byKeys = await Promise.all(people.map(async (user) => read(user.host, await plantKey(dataset, user))))

  /** The CPU time of the server for one request, in microseconds. */
  async function measure(requests: HttpRequest[]): Promise<number> {
    const before = usageOf(server.pid).cpu_us
    const { replies, refused } = await bench.load.drive({ port: server.port, requests, connections, seconds })
    if (refused > 0) throw new Error(`refused ${refused} of ${replies} requests`)
    return (usageOf(server.pid).cpu_us - before) / replies
  }
  await measure(byPeople)
  await measure(byKeys)
  const samples: [number, number][] = []
  for (let turn = 0; turn < pairs; turn++) {
    samples.push(
      await measureBoth(
        turn,
        tries,
        () => measure(byKeys),
        () => measure(byPeople)
      )
    )
  }
  await server.stop()
  const { median, low, high } = spreadOf(samples.map(([key, person]) => key / person))
  bench.figure({ name: 'keys/cpu', value: median, unit: 'ratio', detail: `${low.toFixed(2)} to ${high.toFixed(2)}` })
}

export const keys: Scenario = {
  name: 'keys',
  about: 'GET /tenant with an API key, against the same with the token of a person: CPU of the server',
  inQuick: false,
  run
}

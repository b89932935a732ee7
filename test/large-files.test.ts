import { readFileSync } from 'node:fs'
import t from 'tap'
import { mebibyte } from './bytes.ts'
import { createTestDatabase, post, type Server, startServer, testEnvironment } from './harness.ts'
import { contentSum, createFileClient } from './large-file.ts'
import { objectStores } from './object-stores.ts'

// rehearsal: an upload of hundreds of megabytes

/*
 * The server holds only a few parts of a file in memory, however large the file is. `npm run bench` measures the speed.
 *
 * LARGE_FILE_MIB=2048 is the promised size. The default size shows the same in less time.
 */

const mebibytes = Number(process.env.LARGE_FILE_MIB ?? 256)
const mostGrowth = 64 * mebibyte
const sha256 = contentSum(mebibytes)

for (const kind of objectStores.filter(({ name }) => name !== 'SeaweedFS')) {
  t.test(`a large file on ${kind.name}`, { skip: kind.skip }, async (t) => {
    const store = await kind.start(t)
    const database = await createTestDatabase(t)
    const limits = { MAX_FILE_SIZE: '10GiB', STORAGE_QUOTA: '100GiB' }
    const server = await startServer(t, testEnvironment(database, { ...store.environment, ...limits }))
    const client = createFileClient(server.port, await signUp(server))
    // before measuring: compiled code and buffers of connections grow once
    await client.remove(await client.upload(8))

    const before = memoryOf(server)
    const sampling = sampleMemory(server)
    const file = await client.upload(mebibytes)
    t.equal(await client.download(file), sha256)
    const grown = sampling.stop() - before
    await client.remove(file)
    t.ok(grown < mostGrowth, `memory grew by ${Math.round(grown / mebibyte)} MiB`)
  })
}

/** The resident memory of the server, in bytes. */
function memoryOf({ child }: Server): number {
  const [, kib] = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${child.pid}/status`, 'utf8')) ?? []
  return Number(kib) * 1024
}

function sampleMemory(server: Server): { stop(): number } {
  let peak = 0
  const timer = setInterval(() => {
    peak = Math.max(peak, memoryOf(server))
  }, 20)
  return {
    stop() {
      clearInterval(timer)
      return peak
    }
  }
}

async function signUp(server: Server): Promise<{ host: string; authorization: string }> {
  const registration = post('/auth/register', {
    tenant: { name: 'Acme', slug: 'acme' },
    name: 'Ada',
    email: 'ada@acme.example',
    password: 'correct horse battery'
  })
  const registered = await server.fetch('/api/v1/auth/register', {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(registration.payload)
  })
  const { access_token } = (await registered.json()) as { access_token: string }
  return { host: 'acme.localhost', authorization: `Bearer ${access_token}` }
}

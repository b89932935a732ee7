import { Socket } from 'node:net'
import { PostgresQueryCompiler } from 'kysely'
import t from 'tap'
import { createTenant, startApp } from './harness.ts'

/*
 * The cost of a signed-in read, counted and not timed. A change that makes a read cost more fails here.
 */

type Counts = { writes: number; parses: number; describes: number; executes: number; syncs: number; compiles: number }

const counts: Counts = { writes: 0, parses: 0, describes: 0, executes: 0, syncs: 0, compiles: 0 }
const byType: Record<number, keyof Counts> = { 80: 'parses', 68: 'describes', 69: 'executes', 83: 'syncs' }
let databasePort = 0

// not restored: it is replaced for the life of this process
const { write } = Socket.prototype
Socket.prototype.write = function (this: Socket, ...given: Parameters<typeof write>) {
  const [bytes] = given as unknown as [Buffer]
  if (this.remotePort === databasePort) {
    counts.writes++
    for (let at = 0; at < bytes.length; at += 1 + bytes.readUInt32BE(at + 1)) {
      const name = byType[bytes[at] as number]
      if (name) counts[name]++
    }
  }
  return write.apply(this, given)
} as typeof write
const { compileQuery } = PostgresQueryCompiler.prototype
PostgresQueryCompiler.prototype.compileQuery = function (...given) {
  counts.compiles++
  return compileQuery.apply(this, given)
}

/** The counts of `work`. The poll of revocations is not in them if it fell into a pause. */
async function counted(work: () => Promise<unknown>): Promise<Counts> {
  const before = { ...counts }
  await work()
  return Object.fromEntries(
    Object.entries(counts).map(([name, value]) => [name, value - before[name as keyof Counts]])
  ) as Counts
}

t.test('the hot path', async (t) => {
  // what the database answers; what memory answers is in remembered-reads.test.ts
  const app = await startApp(t, { READ_MEMORY: 'off' })
  databasePort = Number(new URL(app.database.app).port)
  const acme = await createTenant(app, 'acme')
  const tag = (await acme.send('/api/v1/users/me')).headers.etag as string
  // both pipelined connections have prepared each statement
  for (let i = 0; i < 8; i++) await acme.send(i % 2 ? '/api/v1/users/me' : '/api/v1/tenant')

  /** The least count of several attempts. A poll may fall into one of them, but not into all. */
  async function least(work: () => Promise<unknown>): Promise<Counts> {
    const attempts: Counts[] = []
    for (let i = 0; i < 10; i++) attempts.push(await counted(work))
    const names = Object.keys(counts) as (keyof Counts)[]
    return Object.fromEntries(names.map((name) => [name, Math.min(...attempts.map((each) => each[name]))])) as Counts
  }

  // the settings and the statement
  const oneFlush = { writes: 1, parses: 0, describes: 0, executes: 2, syncs: 1, compiles: 0 }
  t.test('who I am: one flush, one Sync, nothing parsed, described or compiled', async (t) => {
    t.strictSame(await least(() => acme.send('/api/v1/users/me')), oneFlush)
  })
  t.test('the same for my agency, and for a reply that saves the body', async (t) => {
    t.strictSame(await least(() => acme.send('/api/v1/tenant')), oneFlush)
    const saved = () => acme.send({ url: '/api/v1/users/me', headers: { 'if-none-match': tag } })
    t.equal((await saved()).statusCode, 304)
    t.strictSame(await least(saved), oneFlush)
  })
  t.test('the first request of an agency with a token asks for it once, and then as always', async (t) => {
    const first = () => {
      // as if nobody had asked for it
      app.tenants.created('acme')
      return acme.send('/api/v1/users/me')
    }
    // both pipelined connections have prepared the look-up
    for (let i = 0; i < 8; i++) await first()
    const twoFlushes = { writes: 2, parses: 0, describes: 0, executes: 4, syncs: 2, compiles: 0 }
    t.strictSame(await least(first), twoFlushes)
  })
  const nothing = { writes: 0, parses: 0, describes: 0, executes: 0, syncs: 0, compiles: 0 }
  t.test('who asks for the head of what is long costs the database nothing', async (t) => {
    for (const path of ['/tenant/export', '/audit-events/export', '/audit-events/verify']) {
      t.strictSame(await least(() => acme.send({ method: 'HEAD', url: `/api/v1${path}` })), nothing, path)
    }
  })
  t.test('who is refused costs the database nothing', async (t) => {
    t.strictSame(await least(() => acme.anonymous('/api/v1/users/me')), nothing)
    t.strictSame(await least(() => acme.with('no.good.token', '/api/v1/users/me')), nothing)
  })
  t.test('many at once share writes and Syncs, and each has its settings', async (t) => {
    const many = 64
    const all = await least(() => Promise.all(Array.from({ length: many }, () => acme.send('/api/v1/users/me'))))
    t.ok(all.writes <= many / 4, `${all.writes} writes for ${many} reads`)
    t.ok(all.syncs <= all.writes, `${all.syncs} Syncs`)
    // on a busy machine, a poll of revocations may fall into each round, or a waiting read may go to the pool
    t.ok(all.executes <= 2 * many + 2, `${all.executes} executes`)
    t.strictSame({ ...all, writes: 0, syncs: 0, executes: 0 }, { ...oneFlush, writes: 0, syncs: 0, executes: 0 })
  })
})

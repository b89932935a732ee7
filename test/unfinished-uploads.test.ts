import t, { type Test } from 'tap'
import { v4 as randomUuid } from 'uuid'
import { mebibyte, opaqueBytes, sha256 } from './bytes.ts'
import { usageOf } from './file-requests.ts'
import { disagreements } from './forms.ts'
import {
  addMember,
  allRows,
  createTenant,
  eventually,
  password,
  post,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'

// bounded in time: how long an upload may take

/** A person who uploads: the owner of an agency, or a member. */
type Sender = { id: string; send: Tenant['send'] }

async function createMember(app: TestApp, tenant: Tenant, name: string, role: string): Promise<Sender> {
  const other = await createTenant(app, name)
  await addMember(app, tenant, other.owner.id, role)
  const reply = await tenant.anonymous(post('/auth/login', { email: other.owner.email, password }))
  const { access_token } = reply.json()
  return { id: other.owner.id, send: (options) => tenant.with(access_token, options) }
}

const begin = ({ send }: Pick<Sender, 'send'>, size: number, sum?: string) =>
  send({
    method: 'POST',
    url: '/api/v1/files/resumable',
    headers: {
      'upload-length': String(size),
      'upload-metadata': `filename ${btoa('a.bin')}${sum === undefined ? '' : `,sha256 ${btoa(sum)}`}`
    }
  })

async function begun(sender: Pick<Sender, 'send'>, size: number, sum?: string) {
  const url = String((await begin(sender, size, sum)).headers.location)
  const append = async (offset: number, payload: Buffer) => {
    const headers = { 'upload-offset': String(offset), 'content-type': 'application/offset+octet-stream' }
    const reply = await sender.send({ method: 'PATCH', url, payload, headers })
    if (reply.statusCode !== 204) throw new Error(`${reply.statusCode} ${reply.body}`)
  }
  const offset = async () => Number((await sender.send({ method: 'HEAD', url })).headers['upload-offset'])
  return { id: url.split('/').at(-2) as string, append, offset }
}

/** The bytes that PostgreSQL has written to its write-ahead log, for all databases. */
const writtenBytes = async (app: TestApp) =>
  Number((await allRows(app.database, "select pg_current_wal_lsn() - '0/0'::pg_lsn as bytes"))[0].bytes)

t.test('pieces of a resumable upload', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const content = opaqueBytes(9 * mebibyte)
  const kept = async () => allRows(app.database, 'select octet_length(content) as bytes from upload_pieces')

  t.test('cost what they are, however much stands before them', async (t) => {
    const { id, append, offset } = await begun(acme, content.length, sha256(content))
    await append(0, content.subarray(0, 4 * mebibyte))
    let at = 4 * mebibyte
    const rounds: number[] = []
    // other tests write to the same log, so the least of some rounds counts
    for (let round = 0; round < 8; round++) {
      const before = await writtenBytes(app)
      for (let i = 0; i < 10; i++, at++) await append(at, content.subarray(at, at + 1))
      rounds.push((await writtenBytes(app)) - before)
    }
    t.ok(Math.min(...rounds) < 2 * mebibyte, `ten bytes cost ${rounds.join(', ')} bytes, and 40 MiB by rewriting`)
    t.ok((await kept()).length <= 3, 'bytes are joined, so that a part is not made of millions of rows')
    t.equal(await offset(), at)
    // over the end of the part
    const step = 300 * 1024
    for (; at < content.length; at += step) await append(at, content.subarray(at, at + step))
    t.match((await acme.send(`/api/v1/files/${id}`)).json(), { size: content.length, sha256: sha256(content) })
    t.strictSame(await kept(), [])
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('are left behind where a version that knows none goes on, and its tail is taken', async (t) => {
    const bytes = content.subarray(0, 6 * mebibyte)
    const { id, append, offset } = await begun(acme, bytes.length, sha256(bytes))
    await append(0, bytes.subarray(0, 3000))
    await append(3000, bytes.subarray(3000, 5000))
    t.equal(await offset(), 5000)
    // as that version does it, which sees no bytes yet
    const tail = bytes.subarray(0, 4000)
    const replaced =
      'update uploads set writer = $2, received = $3, tail = $4 where id = $1 and received = 0 returning id'
    t.equal((await allRows(app.database, replaced, [id, randomUuid(), tail.length, tail])).length, 1)
    t.equal(await offset(), 4000)
    await append(4000, bytes.subarray(4000, 4100))
    await append(4100, bytes.subarray(4100, 5_500_000))
    t.equal(await offset(), 5_500_000)
    await append(5_500_000, bytes.subarray(5_500_000))
    t.match((await acme.send(`/api/v1/files/${id}`)).json(), { sha256: sha256(bytes) })
    t.strictSame(await kept(), [])
    t.strictSame(await disagreements(app, acme), [])
  })
})

t.test('unfinished uploads', async (t) => {
  const app = await startApp(t, { STORAGE_QUOTA: '4000', MAX_FILE_SIZE: '600' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const [ada, bob] = [
    await createMember(app, acme, 'ada', 'member'),
    await createMember(app, acme, 'bob', 'member')
  ] as const
  const usage = () => usageOf(acme)
  const list = async (sender: Pick<Sender, 'send'>, query = '') =>
    (await sender.send(`/api/v1/files/uploads${query}`)).json()
  const end = (sender: Pick<Sender, 'send'>, id: string) =>
    sender.send({ method: 'DELETE', url: `/api/v1/files/uploads/${id}` })
  const announced = (size: number) =>
    post('/files/uploads', { name: 'a', content_type: 'a/b', size, sha256: '0'.repeat(64) })
  const endAll = async (t: Test) => {
    for (const { id } of (await list(acme)).data) t.equal((await end(acme, id)).statusCode, 204)
    await eventually(async () => (await usage()) === 0)
  }

  t.test('of one member hold a share of the room, however many are begun at once', async (t) => {
    const replies = await Promise.all(
      Array.from({ length: 12 }, (_, i) => (i % 2 ? begin(ada, 200) : ada.send(announced(200))))
    )
    const codes = replies.map(({ statusCode }) => statusCode)
    t.equal(codes.filter((code) => code === 201).length, 5, 'a quarter of 4000 bytes')
    t.equal(codes.filter((code) => code === 422).length, 7)
    t.match(replies.find(({ statusCode }) => statusCode === 422)?.json(), {
      code: 'quota_exceeded',
      detail: 'your unfinished uploads may hold at most 1000 bytes'
    })
    t.equal((await begin(bob, 600)).statusCode, 201, 'another member has a share of their own')
    t.equal(await usage(), 1600)
    await endAll(t)
  })
  t.test('are seen and ended by their member, and by admins; nobody else knows of them', async (t) => {
    const { id, append } = await begun(ada, 100)
    await append(0, Buffer.alloc(40, 'x'))
    const direct = (await bob.send(announced(7))).json()
    t.match(await list(ada), { data: [{ id, size: 100, received: 40, created_by: ada.id, name: 'a.bin' }] })
    t.strictSame(
      (await list(bob)).data.map((each: { id: string }) => each.id),
      [direct.id]
    )
    t.strictSame(
      (await list(acme)).data.map((each: { id: string }) => each.id),
      [direct.id, id]
    )
    const { next_cursor } = await list(acme, '?limit=1')
    t.match(await list(acme, `?limit=1&cursor=${next_cursor}`), { data: [{ id }], next_cursor: null })
    t.strictSame((await list(rival)).data, [])
    for (const other of [bob, rival]) t.equal((await end(other, id)).statusCode, 404)
    t.equal((await end(ada, id)).statusCode, 204)
    t.equal((await end(ada, id)).statusCode, 404)
    t.equal((await end(acme, direct.id)).statusCode, 204)
    t.equal((await acme.send({ method: 'POST', url: `/api/v1/files/${direct.id}/complete` })).statusCode, 404)
    await eventually(async () => (await usage()) === 0)
    const events = (await acme.send('/api/v1/audit-events?action=upload.ended')).json().data
    t.ok(events.some((event: { target_id: string; actor_id: string }) => event.target_id === id))
    t.strictSame(await disagreements(app, acme), [])
  })
  t.test('expire a quarter of an hour after their last byte, and after a day whatever comes', async (t) => {
    const { id, append } = await begun(ada, 100)
    const left = async () => {
      const text = 'select extract(epoch from expires_at - now())::float8 as seconds from files where id = $1'
      return (await allRows(app.database, text, [id]))[0].seconds as number
    }
    const age = "update files set expires_at = now() + interval '1 minute' where id = $1"
    await allRows(app.database, age, [id])
    await append(0, Buffer.alloc(0))
    t.ok((await left()) <= 60, 'nothing is no byte')
    await append(0, Buffer.from('x'))
    t.ok((await left()) > 800 && (await left()) <= 900)
    await allRows(app.database, "update files set created_at = now() - interval '23 hours 55 minutes' where id = $1", [
      id
    ])
    await append(1, Buffer.from('y'))
    t.ok((await left()) <= 300)
    await endAll(t)
  })
  t.test('are given up when their member is removed', async (t) => {
    await begin(ada, 500)
    await ada.send(announced(100))
    await begin(bob, 50)
    t.equal((await acme.send({ method: 'DELETE', url: `/api/v1/members/${ada.id}` })).statusCode, 204)
    await app.objectSweep.run()
    t.equal(await usage(), 50)
    t.strictSame(
      (await list(acme)).data.map((each: { created_by: string }) => each.created_by),
      [bob.id]
    )
  })
})

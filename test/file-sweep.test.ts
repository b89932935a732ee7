import { mkdirSync, utimesSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { v4 as randomUuid } from 'uuid'
import { systemScope } from '../db/gate/gate-query.ts'
import { purgeTenant } from '../db/queries/directory.ts'
import { fileKey, imageKey, uploadKey } from '../src/files/store/keys.ts'
import { usageOf } from './file-requests.ts'
import { boundary, createFile, disagreements, fileForm, form, onePixel, storedObjects, sweep } from './forms.ts'
import {
  allRows,
  createTenant,
  eventually,
  post,
  startApp,
  startServer,
  type TestApp,
  testEnvironment
} from './harness.ts'

// rehearsal: processes are killed while files come and go

const pathOf = (app: TestApp, key: string) => join(app.config.dataDir, 'files', 'objects', key)

/** Writes an object to the store without the product, and gives it this age. */
function plant(app: TestApp, key: string, hoursOld = 2): void {
  const path = pathOf(app, key)
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, 'planted')
  const at = new Date(Date.now() - hoursOld * 3_600_000)
  utimesSync(path, at, at)
}

const grow = (app: TestApp, key: string, hoursOld = 2) => {
  const at = new Date(Date.now() - hoursOld * 3_600_000)
  utimesSync(pathOf(app, key), at, at)
}

/** The objects that the application has removed, from its log. */
function sweptBy(app: TestApp): { pending: number; deleted: number; orphans: number } {
  const sum = { pending: 0, deleted: 0, orphans: 0 }
  for (const { msg, swept } of app.logLines.map((line) => JSON.parse(line))) {
    if (msg !== 'object store swept') continue
    for (const kind of Object.keys(sum) as (keyof typeof sum)[]) sum[kind] += swept[kind]
  }
  return sum
}

const image = () => form([{ name: 'file', filename: 'a.png', type: 'image/png', content: onePixel }])

t.test('the sweep', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const kept = await createFile(rival, 'kept')

  t.test('finishes what was given up, deleted, or begun and not finished', async (t) => {
    const [removing, deleted, ready] = [
      await createFile(acme, 'removing'),
      await createFile(acme, 'deleted'),
      await createFile(acme, 'ready')
    ]
    const begun = (
      await acme.send(post('/files/uploads', { name: 'a', content_type: 'a/b', size: 7, sha256: '0'.repeat(64) }))
    ).json()
    await acme.anonymous({ method: 'PUT', url: new URL(begun.url).pathname, payload: 'planted' })
    // two removals by processes that died: the lease of one is over, that of the other is not
    await allRows(app.database, "update files set status = 'removing', expires_at = now() where id = $1", [removing.id])
    await acme.send({ method: 'DELETE', url: `/api/v1/files/${deleted.id}` })
    await sweep(app)
    const statuses = async () =>
      (await allRows(app.database, 'select status from files where tenant_id = $1 order by id', [acme.id])).map(
        ({ status }) => status
      )
    t.strictSame(await statuses(), ['deleted', 'ready', 'pending'], 'what can come back, is whole or arriving stays')
    await allRows(app.database, "update files set expires_at = now() where status in ('deleted', 'pending')")
    const before = sweptBy(app)
    await sweep(app)
    t.strictSame(await statuses(), ['ready'])
    t.strictSame(
      [...storedObjects(app).objects.keys()].sort(),
      [fileKey(acme.id, ready.id), fileKey(rival.id, kept.id)].sort()
    )
    t.strictSame(await disagreements(app, acme), [])
    t.equal(await usageOf(acme), 5)
    const { pending, deleted: gone } = sweptBy(app)
    t.strictSame([pending - before.pending, gone - before.deleted], [1, 1])
  })
  t.test('removes what no row refers to once it is old enough, and nothing that is not ours', async (t) => {
    const file = await createFile(acme, 'referred to')
    grow(app, fileKey(acme.id, file.id))
    const logo = (await acme.send({ method: 'PUT', url: '/api/v1/tenant/logo', ...image() })).json().logo_url as string
    const logoKey = imageKey(acme.id, logo.split('/').at(-1) as string)
    grow(app, logoKey)
    const orphans = [
      fileKey(acme.id, randomUuid()),
      fileKey(randomUuid(), randomUuid()),
      uploadKey(acme.id, file.id),
      imageKey(acme.owner.id, randomUuid()),
      // the id of a file of another agency, in the folder of this one
      fileKey(acme.id, kept.id)
    ]
    const young = fileKey(acme.id, randomUuid())
    const foreign = [`${acme.id}/other/${randomUuid()}`, 'backup.tar', 'folder/note.txt']
    for (const key of [...orphans, ...foreign]) plant(app, key)
    plant(app, young, 0.5)
    const before = sweptBy(app).orphans
    await sweep(app)
    const keys = [...storedObjects(app).objects.keys()]
    t.strictSame(
      keys.filter((key) => orphans.includes(key)),
      []
    )
    for (const key of [...foreign, young, logoKey, fileKey(acme.id, file.id)]) t.ok(keys.includes(key), key)
    t.equal(sweptBy(app).orphans - before, orphans.length)
  })
  t.test('is done by two processes at once without doing anything twice', async (t) => {
    const other = await startApp(t, { LOG_LEVEL: 'info' }, app.database)
    for (let i = 0; i < 30; i++) await createFile(acme, `x${i}`)
    await allRows(app.database, "update files set status = 'deleted', expires_at = now() where tenant_id = $1", [
      acme.id
    ])
    const before = sweptBy(app).deleted
    const count = (await allRows(app.database, 'select from files where tenant_id = $1', [acme.id])).length
    await Promise.all([app.objectSweep.run(), other.objectSweep.run(), app.objectSweep.run()])
    await eventually(
      async () => (await disagreements(app, acme)).filter((each) => !each.startsWith('no row for')).length === 0
    )
    t.equal(sweptBy(app).deleted - before + sweptBy(other).deleted, count)
    t.equal((await allRows(app.database, 'select from files where tenant_id = $1', [acme.id])).length, 0)
    t.equal((await rival.send(`/api/v1/files/${kept.id}/content`)).body, 'kept')
  })
  t.test('goes on after a file that can not be removed', async (t) => {
    const [stuck, free] = [await createFile(acme, 'stuck'), await createFile(acme, 'free')]
    await allRows(app.database, "update files set status = 'deleted', expires_at = now() where tenant_id = $1", [
      acme.id
    ])
    const { remove } = app.objects
    app.objects.remove = async (key) => {
      if (key.endsWith(stuck.id)) throw new TypeError('not a key')
      await remove(key)
    }
    await app.objectSweep.run()
    app.objects.remove = remove
    const rows = await allRows(app.database, 'select id, status from files where tenant_id = $1', [acme.id])
    t.strictSame(rows, [{ id: stuck.id, status: 'removing' }], `and ${free.id} is gone`)
    await allRows(app.database, 'update files set expires_at = now() where id = $1', [stuck.id])
    await app.objectSweep.run()
    t.equal((await allRows(app.database, 'select from files where tenant_id = $1', [acme.id])).length, 0)
  })
})

t.test('with an agency go its files, and not before they are gone', async (t) => {
  const app = await startApp(t, { TENANT_PURGE_AFTER: '3600' })
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const kept = await createFile(rival, 'kept')
  for (let i = 0; i < 3; i++) await createFile(acme, `x${i}`)
  await acme.send(post('/files/uploads', { name: 'a', content_type: 'a/b', size: 7, sha256: '0'.repeat(64) }))
  const logo = (await acme.send({ method: 'PUT', url: '/api/v1/tenant/logo', ...image() })).json().logo_url as string
  await acme.send({ method: 'DELETE', url: '/api/v1/tenant', payload: { slug: 'acme' } })
  await allRows(app.database, 'update tenants set purge_at = now() where id = $1', [acme.id])
  const there = async () => (await allRows(app.database, 'select from tenants where id = $1', [acme.id])).length === 1

  await app.gate.query(systemScope, purgeTenant, {})
  t.ok(await there(), 'its files are given to the sweep')
  t.strictSame(await app.gate.query(systemScope, purgeTenant, {}), [{ id: null }], 'and it waits for that')
  await sweep(app)
  t.strictSame(await app.gate.query(systemScope, purgeTenant, {}), [{ id: acme.id }])
  t.notOk(await there())
  for (const table of ['files', 'uploads', 'storage_usage']) {
    t.strictSame(await allRows(app.database, `select from ${table} where tenant_id = $1`, [acme.id]), [], table)
  }
  grow(app, imageKey(acme.id, logo.split('/').at(-1) as string))
  await sweep(app)
  t.strictSame([...storedObjects(app).objects.keys()], [fileKey(rival.id, kept.id)], 'its logo is gone too')
  t.equal((await rival.send(`/api/v1/files/${kept.id}/content`)).body, 'kept')
})

t.test('whenever a process is killed, rows and objects match after the sweep', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const env = testEnvironment(app.database)

  /** Begins six uploads, and kills the server when the condition is true. */
  async function killed(t: Test, part: number, size: number, isSo: () => Promise<boolean> | boolean): Promise<void> {
    const others = await backends()
    const server = await startServer(t, env)
    const { payload } = fileForm(Buffer.alloc(size, 'x'), 'large.bin', 'application/octet-stream')
    const head = Buffer.from(
      [
        'POST /api/v1/files HTTP/1.1',
        'Host: acme.localhost',
        `Authorization: Bearer ${acme.owner.tokens.access_token}`,
        `Content-Type: multipart/form-data; boundary=${boundary}`,
        `Content-Length: ${payload.length}`,
        '',
        ''
      ].join('\r\n')
    )
    const sockets = Array.from({ length: 6 }, () => {
      const socket = connect({ port: server.port, host: '127.0.0.1' })
      socket.on('error', () => {}).resume()
      const sent = new Promise<void>((done) => {
        socket.write(Buffer.concat([head, payload.subarray(0, Math.floor(payload.length * part))]), () => done())
        socket.once('close', () => done())
      })
      return { socket, sent }
    })
    await Promise.race([Promise.all(sockets.map(({ sent }) => sent)), sleep(5000)])
    await eventually(isSo, 20_000)
    server.child.kill('SIGKILL')
    await server.exited
    for (const { socket } of sockets) socket.destroy()
    // PostgreSQL still runs what it was sent before
    const left = (await backends()).filter((pid) => !others.includes(pid))
    await eventually(async () => !(await backends()).some((pid) => left.includes(pid)))
  }

  const backends = async () =>
    (
      await allRows(
        app.database,
        "select pid from pg_stat_activity where datname = current_database() and usename = 'aggios_app'"
      )
    ).map(({ pid }) => Number(pid))
  const rows = async (status: string) =>
    (await allRows(app.database, 'select from files where status = $1', [status])).length
  let ready = 0
  let leftOver = 0
  const afterMs = (ms: number) => async () => {
    await sleep(ms)
    return true
  }
  const moments: [what: string, part: number, size: number, isSo: () => Promise<boolean> | boolean][] = [
    ['rows are reserved', 0.01, 9_000_000, async () => (await rows('pending')) > 0],
    ['bytes are half written', 0.9, 20_000_000, () => storedObjects(app).unfinished.length > leftOver],
    ['bytes are written', 1, 9_000_000, async () => storedObjects(app).objects.size > ready],
    ['some are ready', 1, 1000, async () => (await rows('ready')) > ready],
    ...[0, Math.floor(Math.random() * 50), 200].map((ms): (typeof moments)[number] => [
      `${ms} ms after all bytes`,
      1,
      100_000,
      afterMs(ms)
    ])
  ]
  for (const [what, part, size, isSo] of moments) {
    await killed(t, part, size, isSo)
    await allRows(app.database, "update files set expires_at = now() where status = 'pending'")
    await sweep(app)
    const faults = (await disagreements(app, acme)).filter((each) => !each.endsWith('never finished'))
    t.strictSame(faults, [], what)
    ready = await rows('ready')
    leftOver = storedObjects(app).unfinished.length
    t.comment(`${what}: ${ready} files are there`)
  }
  const newest = { url: '/api/v1/tenant', headers: { 'cache-control': 'no-cache' } }
  t.match((await acme.send(newest)).json().usage, {
    storage_bytes: [...storedObjects(app).objects.values()].reduce((sum, size) => sum + size, 0)
  })
})

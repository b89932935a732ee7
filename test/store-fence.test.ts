import { execFile } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { v4 as randomUuid } from 'uuid'
import { fileKey, imageKey, markKey } from '../src/files/store/keys.ts'
import { createDatabase, dropDatabase } from './databases.ts'
import { createFile, type FileReply, fileForm, form, onePixel, storedObjects, sweep } from './forms.ts'
import {
  allRows,
  commandFile,
  createTenant,
  createTestDatabase,
  elsewhere,
  startApp,
  type TestApp,
  testEnvironment
} from './harness.ts'

const folderOf = (app: TestApp) => join(app.config.dataDir, 'files', 'objects')

/** Makes every object old enough to count as an orphan. */
function ageObjects(app: TestApp): void {
  const at = new Date(Date.now() - 2 * 3_600_000)
  for (const key of storedObjects(app).objects.keys()) utimesSync(join(folderOf(app), key), at, at)
}

const fenced = async (app: TestApp) =>
  (await app.metrics.collect()).find(({ name }) => name === 'aggios_object_sweep_fenced')?.samples[0]?.value
const errors = (app: TestApp) =>
  app.logLines.map((line) => JSON.parse(line)).flatMap(({ level, reason }) => (level === 50 && reason ? [reason] : []))
const markOf = (app: TestApp) => JSON.parse(readFileSync(join(folderOf(app), markKey), 'utf8'))

/** Copies a database. Nothing may be connected to it. */
async function copyDatabase(t: Test, name: string) {
  const copy = `${name}_copy`
  const urls = await createDatabase(copy, name)
  t.teardown(() => dropDatabase(copy))
  return urls
}

/** Writes an object without a row to the store. */
function plant(app: TestApp, key: string): void {
  const path = join(folderOf(app), key)
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, 'planted')
}

/** Runs an operator's command, with the settings of an application. */
async function command(app: TestApp, name: 'files' | 'jobs', ...args: string[]) {
  const settings = testEnvironment(app.database, { DATA_DIR: app.config.dataDir })
  const env = { PATH: process.env.PATH, ...settings } as NodeJS.ProcessEnv
  const run = promisify(execFile)(process.execPath, [...process.execArgv, commandFile(name), ...args], {
    cwd: elsewhere,
    env
  })
  const { stderr, code = 0 } = await run.catch((err) => err)
  return { said: stderr as string, code: code as number }
}

t.test('a database that is older than its store removes nothing', async (t) => {
  const database = await createTestDatabase(t)
  const name = new URL(database.app).pathname.slice(1)
  const before = await startApp(t, {}, database)
  const acme = await createTenant(before, 'acme')
  const deleted = await createFile(acme, 'deleted later on, or not')
  await sweep(before)
  await before.close()
  const backup = await copyDatabase(t, name)

  const app = await startApp(t, {}, database)
  const authorization = `Bearer ${acme.owner.tokens.access_token}`
  const newer = (
    await app.inject({
      ...fileForm('newer than the backup'),
      headers: { ...form([]).headers, host: acme.host, authorization }
    })
  ).json() as FileReply
  ageObjects(app)
  const keys = [fileKey(acme.id, deleted.id), fileKey(acme.id, newer.id)].sort()
  const there = () => [...storedObjects(app).objects.keys()].sort()
  const restored = await startApp(t, { DATA_DIR: app.config.dataDir, LOG_LEVEL: 'error' }, backup)
  await allRows(backup, "update files set status = 'deleted', expires_at = now() where id = $1", [deleted.id])

  await t.test('whatever it finds deleted, or without a row', async (t) => {
    for (let i = 0; i < 2; i++) await sweep(restored)
    t.strictSame(there(), keys)
    t.strictSame(await allRows(backup, 'select status from files'), [{ status: 'deleted' }], 'no row is claimed either')
  })
  await t.test('and says why', async (t) => {
    t.match(errors(restored), [/^the store was swept by another database/], 'once')
    t.equal(await fenced(restored), 1)
    t.match(restored.storeFence.reason(), 'another database')
    t.match(await command(restored, 'files', 'compare', '--repair'), {
      said: /not this database's: another database/,
      code: 1
    })
    t.match(await command(restored, 'jobs', 'run', 'object_sweep'), {
      said: /object_sweep was not run: the store was swept by another database/,
      code: 1
    })
    t.strictSame(there(), keys)
  })
  await t.test('also where it is a copy of all files of the server, by the generation', async (t) => {
    const { generation } = markOf(app)
    await sweep(app)
    t.equal(markOf(app).generation, generation + 1)
    // such a copy differs only in its generation
    await allRows(app.database, 'update object_sweep set generation = $1', [generation])
    t.notOk(await app.storeFence.check())
    await sweep(app)
    t.match(app.storeFence.reason(), 'ahead of this database')
    t.strictSame(there(), keys)
    await allRows(app.database, 'update object_sweep set generation = $1', [generation + 2])
    t.ok(await app.storeFence.check(), 'a database that is ahead is one that died before it wrote the mark')
  })
  await t.test('nor an image that is replaced', async (t) => {
    const id = randomUuid()
    plant(app, imageKey(acme.id, id))
    await allRows(backup, 'update tenants set logo_url = $1', [`/api/v1/images/${acme.id}/${id}`])
    const reply = await restored.inject({
      method: 'PUT',
      url: '/api/v1/tenant/logo',
      ...form([{ name: 'file', filename: 'a.png', type: 'image/png', content: onePixel }]),
      headers: { ...form([]).headers, host: acme.host, authorization }
    })
    t.equal(reply.statusCode, 200)
    t.ok(existsSync(join(folderOf(app), imageKey(acme.id, id))))
  })
  await t.test('until an operator says that the store is its own; then the other one stops', async (t) => {
    t.match(await command(restored, 'files', 'accept-store'), {
      said: /^the store is this database's now: 0 files without their bytes, [12] objects without a row/,
      code: 0
    })
    await sweep(restored)
    t.equal(await fenced(restored), 0)
    t.notOk(there().includes(fileKey(acme.id, newer.id)), 'it removes what it knows no row of')
    await sweep(app)
    t.equal(await fenced(app), 1)
  })
})

t.test('a store', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'error' })
  const acme = await createTenant(app, 'acme')
  const mark = join(folderOf(app), markKey)
  const verdictOf = async () => {
    await app.storeFence.check()
    return app.storeFence.reason()
  }
  await t.test('is taken when it is new', async (t) => {
    t.equal(await verdictOf(), undefined)
    t.equal(markOf(app).generation, 0)
  })
  await t.test('is taken when its objects are of rows here, and no mark was ever written', async (t) => {
    const files = [await createFile(acme, 'one'), await createFile(acme, 'two'), await createFile(acme, 'three')]
    const orphan = fileKey(acme.id, randomUuid())
    plant(app, orphan)
    rmSync(mark)
    t.equal(await verdictOf(), undefined)
    rmSync(mark)
    for (let i = 0; i < files.length; i++) plant(app, fileKey(randomUuid(), randomUuid()))
    ageObjects(app)
    t.match(await verdictOf(), 'most of them belong to no row here')
    t.notOk(existsSync(mark))
  })
  await t.test('of another installation, or with a mark that is none, is let alone', async (t) => {
    const { installation, generation } = (await allRows(app.database, 'select * from object_sweep'))[0]
    const own = { installation, generation: Number(generation) }
    for (const [content, reason] of [
      [JSON.stringify({ ...own, installation: randomUuid(), database: 'x/1' }), 'another installation'],
      [JSON.stringify({ ...own, database: 'x/1' }), 'another database'],
      ['{', 'can not be read'],
      ['7', 'can not be read'],
      ['x'.repeat(5000), 'can not be read']
    ] as const) {
      writeFileSync(mark, content)
      t.match(await verdictOf(), reason)
    }
    ageObjects(app)
    const before = [...storedObjects(app).objects.keys()]
    await sweep(app)
    t.strictSame([...storedObjects(app).objects.keys()], before)
  })
})

t.test('SWEEP', async (t) => {
  const database = await createTestDatabase(t)
  const app = await startApp(t, { LOG_LEVEL: 'info', SWEEP: 'report' }, database)
  const acme = await createTenant(app, 'acme')
  const file = await createFile(acme, 'deleted')
  await sweep(app)
  const orphan = fileKey(acme.id, randomUuid())
  plant(app, orphan)
  ageObjects(app)
  await allRows(database, "update files set status = 'deleted', expires_at = now() where id = $1", [file.id])
  const keys = [orphan, fileKey(acme.id, file.id)].sort()

  await t.test('=report logs what would be removed, and changes nothing', async (t) => {
    await sweep(app)
    const told = app.logLines.map((line) => JSON.parse(line)).flatMap(({ keys: named = [] }) => named)
    t.strictSame(told.sort(), keys)
    t.strictSame([...storedObjects(app).objects.keys()].sort(), keys)
    t.strictSame(await allRows(database, 'select status from files'), [{ status: 'deleted' }])
  })
  await t.test('=off does nothing, and =on removes', async (t) => {
    const off = await startApp(t, { SWEEP: 'off' }, database)
    await sweep(off)
    t.strictSame([...storedObjects(app).objects.keys()].sort(), keys)
    const on = await startApp(t, { SWEEP: 'on' }, database)
    await sweep(on)
    t.strictSame([...storedObjects(app).objects.keys()], [])
  })
})

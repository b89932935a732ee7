import { execFile } from 'node:child_process'
import { mkdirSync, rmSync, truncateSync, utimesSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { v4 as randomUuid } from 'uuid'
import { compareFiles } from '../db/queries/file-comparison.ts'
import { fileKey, imageKey } from '../src/files/store/keys.ts'
import type { ObjectStore } from '../src/files/store/object-store.ts'
import { type DatabaseUrls, withClient } from './databases.ts'
import { usageOf } from './file-requests.ts'
import { createFile, disagreements, storedObjects } from './forms.ts'
import {
  allRows,
  asOwner,
  commandFile,
  createTenant,
  createTestDatabase,
  elsewhere,
  eventually,
  startApp,
  testEnvironment
} from './harness.ts'

/** Makes rows of files old enough for the comparison. */
const ageFiles = (database: DatabaseUrls, ids: string[]) =>
  allRows(database, "update files set created_at = now() - interval '2 hours' where id = any ($1)", [ids])

t.test('npm run files -- compare', async (t) => {
  const database = await createTestDatabase(t)
  const app = await startApp(t, {}, database)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const path = (key: string) => join(app.config.dataDir, 'files', 'objects', key)

  /** Runs the operator's command, with the settings of the server. */
  const command = async (...args: string[]) => {
    const env = { PATH: process.env.PATH, ...testEnvironment(database) } as NodeJS.ProcessEnv
    const run = promisify(execFile)(process.execPath, [...process.execArgv, commandFile('files'), ...args], {
      cwd: elsewhere,
      env
    })
    const { stdout, stderr, code = 0 } = await run.catch((err) => err)
    return {
      lines: (stdout as string).split('\n').filter(Boolean).sort(),
      said: stderr as string,
      code: code as number
    }
  }
  /** Writes an object without a row, so many hours old. */
  function plant(key: string, hours: number): void {
    mkdirSync(dirname(path(key)), { recursive: true })
    writeFileSync(path(key), 'planted')
    const at = Date.now() / 1000 - hours * 3600
    utimesSync(path(key), at, at)
  }

  const [whole, lost, short] = await Promise.all(['one', 'two', 'three'].map((text) => createFile(acme, text)))
  const deleted = await createFile(rival, 'four')
  await rival.send({ method: 'DELETE', url: `/api/v1/files/${deleted.id}` })
  // otherwise it would find the objects that are planted below
  await app.objectSweep.run()
  if (!whole || !lost || !short) throw new Error('not all files were made')

  await t.test('finds nothing where all is well', async (t) => {
    t.strictSame(await command('compare'), {
      lines: [],
      said: '0 files without their bytes, 0 objects without a row, 0 wrong counts\n',
      code: 0
    })
  })

  // too young for the comparison
  const fresh = await createFile(acme, 'lost at once')
  for (const { id } of [lost, fresh]) rmSync(path(fileKey(acme.id, id)))
  truncateSync(path(fileKey(acme.id, short.id)), 2)
  await ageFiles(database, [lost.id, short.id])
  const orphan = fileKey(rival.id, randomUuid())
  const image = imageKey(acme.id, randomUuid())
  const young = fileKey(rival.id, randomUuid())
  plant(orphan, 2)
  plant(image, 2)
  plant(young, 0)
  const foreign = join(app.config.dataDir, 'files', 'objects', 'somebody-elses.txt')
  writeFileSync(foreign, 'not ours')
  await asOwner(database, rival.id, rival.owner.id, [['update storage_usage set bytes = bytes + 7', []]])
  const found = [
    `${fileKey(acme.id, lost.id)} has no bytes`,
    `${fileKey(acme.id, short.id)} has 2 bytes and not 5`,
    `${orphan} belongs to no row`,
    `${image} belongs to no row`,
    `agency ${rival.id} is counted with 11 bytes and has 4`
  ].sort()
  const sum = '2 files without their bytes, 2 objects without a row, 1 wrong counts\n'

  await t.test('names each thing that does not match, and changes nothing', async (t) => {
    for (let i = 0; i < 2; i++) t.strictSame(await command('compare'), { lines: found, said: sum, code: 0 })
    t.equal((await acme.send(`/api/v1/files/${lost.id}`)).statusCode, 200)
  })
  await t.test('repairs what can be, and an agency reads in its log what is lost', async (t) => {
    t.strictSame(await command('compare', '--repair'), { lines: found, said: `repaired: ${sum}`, code: 0 })
    await app.objectSweep.run()
    for (const { id } of [lost, short]) t.equal((await acme.send(`/api/v1/files/${id}`)).statusCode, 404)
    t.equal((await acme.send(`/api/v1/files/${whole.id}/content`)).body, 'one')
    t.equal((await acme.send(`/api/v1/files/${fresh.id}`)).statusCode, 200, 'what is young is not judged')
    await acme.send({ method: 'DELETE', url: `/api/v1/files/${fresh.id}?permanent=true` })
    await app.objectSweep.run()
    t.equal((await rival.send({ method: 'POST', url: `/api/v1/files/${deleted.id}/restore` })).statusCode, 200)
    const events = "select target_id from audit_events where tenant_id = $1 and action = 'file.lost' order by target_id"
    const ids = [lost.id, short.id].sort()
    t.strictSame(
      (await allRows(database, events, [acme.id])).map(({ target_id }) => target_id),
      ids
    )
    t.strictSame(await disagreements(app, acme), [])
    t.strictSame(await command('compare'), {
      lines: [],
      said: '0 files without their bytes, 0 objects without a row, 0 wrong counts\n',
      code: 0
    })
    const { objects } = storedObjects(app)
    t.ok(objects.has(young), 'what is young may get its row yet')
    t.ok(objects.has('somebody-elses.txt'), 'what is not ours is left alone')
  })
  await t.test('does nothing else', async (t) => {
    t.match(await command('repair'), { said: /^error: unknown command 'repair'.*\n$/, code: 2 })
    t.match(await command('compare', '--repair', 'more'), { said: /^error: unknown word 'more'.*\n$/, code: 2 })
  })
})

t.test('a comparison beside servers that are at work', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const usage = () => usageOf(acme)
  const lines: string[] = []
  const repair = (store: ObjectStore) =>
    compareFiles({ gate: app.gate, store, repair: true, report: (line) => void lines.push(line) })

  await t.test('loses nothing that is uploaded or deleted meanwhile', async (t) => {
    const contents = new Map<string, string>()
    let done = false
    const uploads = Array.from({ length: 4 }, async (_, who) => {
      for (let i = 0; !done; i++) {
        const text = `${who} ${i}`
        const { id } = await createFile(acme, text)
        await ageFiles(app.database, [id])
        if (i % 3 !== 0) contents.set(id, text)
        else await acme.send({ method: 'DELETE', url: `/api/v1/files/${id}?permanent=true` })
      }
    })
    for (let i = 0; i < 10 || contents.size < 50; i++) await repair(app.objects)
    done = true
    await Promise.all(uploads)
    for (const [id, text] of contents) {
      const reply = await acme.send(`/api/v1/files/${id}/content`)
      if (reply.body !== text) t.fail(`${id} is ${reply.statusCode}`)
    }
    await app.objectSweep.run()
    t.strictSame(lines, [])
    t.strictSame(await disagreements(app, acme), [], `of ${contents.size} files`)
  })
  await t.test('asks a store again whose listing is late', async (t) => {
    const late = await createFile(acme, 'late')
    await ageFiles(app.database, [late.id])
    const listing: ObjectStore = {
      ...app.objects,
      list: async (after, limit) =>
        (await app.objects.list(after, limit)).filter(({ key }) => key !== fileKey(acme.id, late.id))
    }
    t.match(await repair(listing), { lost: 0 })
    t.equal((await acme.send(`/api/v1/files/${late.id}/content`)).body, 'late')
  })
  await t.test('leaves a file alone that changes between two looks at it', async (t) => {
    const moving = await createFile(acme, 'moving')
    await ageFiles(app.database, [moving.id])
    const key = fileKey(acme.id, moving.id)
    const store: ObjectStore = {
      ...app.objects,
      list: async () => [],
      async size(each) {
        if (each === key) await acme.send({ method: 'DELETE', url: `/api/v1/files/${moving.id}` })
        return each === key ? undefined : app.objects.size(each)
      }
    }
    t.match(await repair(store), { lost: 0 })
    t.equal((await acme.send({ method: 'POST', url: `/api/v1/files/${moving.id}/restore` })).statusCode, 200)
  })
  await t.test('counts what is reserved while it waits for the count', async (t) => {
    await allRows(app.database, 'update storage_usage set bytes = bytes + 7')
    const before = (await usage()) - 7
    await withClient(app.database.postgres, async (client) => {
      await client.query('begin')
      await client.query('update storage_usage set bytes = bytes + 100 where tenant_id = $1', [acme.id])
      await client.query(
        "insert into files (tenant_id, id, name, folded_name, size, expires_at) values ($1, $2, 'a', 'a', 100, now())",
        [acme.id, randomUuid()]
      )
      const repaired = repair(app.objects)
      const waiting = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
      await eventually(async () => (await allRows(app.database, waiting)).length > 0)
      await client.query('commit')
      await repaired
    })
    t.equal(await usage(), before + 100)
  })
})

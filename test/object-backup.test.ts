import { execFile } from 'node:child_process'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import t from 'tap'
import { v4 as randomUuid } from 'uuid'
import { readStoreInstallation } from '../db/queries/store-fence.ts'
import { examine } from '../src/cli/doctor/doctor.ts'
import { readBackupConfig } from '../src/config/backups.ts'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { allObjects, backUpObjects, completeUntil, createBatch, openObjectBackup } from '../src/files/object-backup.ts'
import { openBackup, openStore } from '../src/files/store/configured-store.ts'
import { fileKey, markKey } from '../src/files/store/keys.ts'
import type { ObjectStore } from '../src/files/store/object-store.ts'
import { archiveSkip, startBackupStore } from './archive.ts'
import { createFile, storedObjects, sweep } from './forms.ts'
import { commandFile, createTenant, elsewhere, startApp, temporaryFolder, testEnvironment } from './harness.ts'

// rehearsal: the copy of the files in another bucket

/*
 * The copy of the store's objects in the bucket for backups: `npm run files -- backup` and `restore`.
 */

t.test('the copy of the objects', { skip: archiveSkip }, async (t) => {
  const { environment } = await startBackupStore(t)
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const env: Environment = { ...testEnvironment(app.database), ...environment }
  const folder = join(app.config.dataDir, 'files')
  const command = async (words: string[], more = {}) => {
    const run = promisify(execFile)(process.execPath, [...process.execArgv, commandFile('files'), ...words], {
      cwd: elsewhere,
      env: { PATH: process.env.PATH, ...env, ...more } as NodeJS.ProcessEnv
    })
    const { stdout, stderr, code = 0 } = await run.catch((err) => err)
    return { code: code as number, said: `${stdout}${stderr}` }
  }
  const content = async (id: string) => (await acme.send(`/api/v1/files/${id}/content`)).body
  const [one, two] = [await createFile(acme, 'one'), await createFile(acme, 'two')]

  await t.test('has every object, each copied once', async (t) => {
    for (const words of [['backup'], ['backup', '--check', '60']])
      t.match(await command(words), { code: 1, said: /the store has no mark of an installation/ })
    await sweep(app)
    t.match(await command(['backup', '--check', '60']), { code: 1, said: /never copied/ })
    t.match(await command(['backup']), { code: 0, said: /^2 objects copied \(6 bytes\), 0 removed; complete until 20/ })
    await createFile(acme, 'three')
    t.match(await command(['backup']), { code: 0, said: /^1 objects copied \(5 bytes\), 0 removed/ })
    t.match(await command(['backup', '--check', '60']), { code: 0, said: /complete until .*, \d s ago/ })
  })

  const config = readBackupConfig(env)
  const [store, bucket] = [await openStore(config), await openBackup(config)]
  t.teardown(() => bucket.close())
  const installation = (await readStoreInstallation(store)) as string
  const backup = openObjectBackup(bucket, installation)
  const mark = (of: string) => Buffer.from(JSON.stringify({ installation: of, database: 'any', generation: 1 }))
  const keysOf = async (folder: ObjectStore) => {
    const keys: string[] = []
    for await (const { key } of allObjects(folder)) keys.push(key)
    return keys
  }

  await t.test('of another installation in the same bucket is another copy', async (t) => {
    const others = { DATA_DIR: temporaryFolder(t) }
    const other = await openStore({ ...config, dataDir: others.DATA_DIR })
    const [id, key] = [randomUuid(), fileKey(randomUuid(), randomUuid())]
    await other.put(markKey, mark(id))
    await other.put(key, Buffer.from('theirs'))
    t.match(await command(['backup'], others), { code: 0, said: /^1 objects copied \(6 bytes\), 0 removed/ })
    t.match(await command(['backup']), { code: 0, said: /^0 objects copied \(0 bytes\), 0 removed/ })
    t.strictSame(await keysOf(openObjectBackup(bucket, id).objects), [key])
    t.equal((await keysOf(backup.objects)).length, 3)
    t.strictSame([...(await keysOf(backup.gone)), ...(await keysOf(openObjectBackup(bucket, id).gone))], [])
  })

  await t.test('loses nothing to a store that is empty, or the wrong one', async (t) => {
    const wrong = { DATA_DIR: temporaryFolder(t) }
    const other = await openStore({ ...config, dataDir: wrong.DATA_DIR })
    const before = await completeUntil(backup)
    t.match(await command(['backup'], wrong), { code: 1, said: /it may be the wrong one/ })
    // a server marks an empty store as its own, and then people upload files
    await other.put(markKey, mark(installation))
    const key = fileKey(acme.id, randomUuid())
    await other.put(key, Buffer.from('new'))
    t.match(await command(['backup'], wrong), { code: 1, said: /is not the one that was copied before/ })
    await t.rejects(backUpObjects(other, backup, -1000), { message: /is not the one/ })
    t.equal(await backup.objects.size(key), 3, 'new objects are copied all the same')
    t.strictSame(await keysOf(backup.gone), [])
    t.strictSame(await completeUntil(backup), before, 'and the check becomes red')
    await backup.objects.remove(key)
  })

  await t.test('whose age the doctor sees', async (t) => {
    const config = readConfig(env)
    const look = async (more: Environment = {}, now = Date.now()) => {
      const options = { config, env: { ...env, ...more }, databaseUrl: app.database.serving, now: () => now }
      const { findings, not_checked, facts } = await examine(options, { only: ['store'] })
      return { seen: findings.map(({ code, seen }) => `${code}: ${seen}`), not_checked, facts }
    }
    const sound = await look()
    t.strictSame([sound.seen, sound.not_checked], [[], []])
    t.type(sound.facts.store?.copied_seconds_ago, 'number')
    t.match((await look({}, Date.now() + 7_200_000)).seen, [/^files_not_copied: the copy is complete until 20/])
    t.match((await look({ BACKUP_S3_SECRET_KEY: 'another' })).seen, [/^files_not_copied: the object store is refused/])
    const { seen, not_checked } = await look({ BACKUP_S3_ENDPOINT: undefined })
    t.match([seen, not_checked], [[], [{ check: 'copy of the files', reason: /^BACKUP_S3_ENDPOINT is not set here/ }]])
  })

  await t.test('waits for all copies, and then fails with the first failure', async (t) => {
    const batch = createBatch()
    await batch.add(() => Promise.reject(new Error('the bucket is full')))
    // a failure that nobody handles for so long would end the process
    await sleep(10)
    await t.rejects(batch.settle(), { message: 'the bucket is full' })
  })

  await t.test('brings back what rows refer to, and nothing else', async (t) => {
    await acme.send({ method: 'DELETE', url: `/api/v1/files/${two.id}` })
    await backup.objects.put(fileKey(acme.id, randomUuid()), Buffer.from('an upload that no row knows'))
    const before = storedObjects(app).objects
    const late = await createFile(acme, 'after the copy')
    rmSync(folder, { recursive: true })
    t.match(await command(['restore']), { code: 0, said: /^3 objects restored \(11 bytes\); 1 belong to no row/ })
    t.strictSame(storedObjects(app).objects, before, 'those of deleted files too, which can be restored for a while')
    t.equal(await content(one.id), 'one')
    t.not((await acme.send(`/api/v1/files/${late.id}/content`)).statusCode, 200, 'it was never copied')
    t.match(await command(['restore']), { code: 0, said: /^0 objects restored/ })
  })

  await t.test('keeps what the store no longer has for its time, and then removes it', async (t) => {
    const key = fileKey(acme.id, one.id)
    await store.remove(key)
    const long = 86_400_000
    t.match(await backUpObjects(store, backup, long), { copied: 0, removed: 0 })
    t.equal(await backup.objects.size(key), 3, 'it is still there')
    t.equal(await backup.gone.size(key), 0, 'and known to be gone')
    await store.put(key, Buffer.from('one'))
    await backUpObjects(store, backup, 0)
    t.equal(await backup.gone.size(key), undefined, 'until it is in the store again')
    await store.remove(key)
    await backUpObjects(store, backup, 0)
    t.match(await backUpObjects(store, backup, -1000), { copied: 0, removed: 1 })
    t.equal(await backup.objects.size(key), undefined)
    t.equal(await backup.gone.size(key), undefined)
  })

  await t.test('says why it can not be made', async (t) => {
    // that of the removed store was removed with it
    await store.put(markKey, mark(installation))
    const wrong = await command(['backup'], { BACKUP_S3_SECRET_KEY: 'another' })
    t.match(wrong, { code: 1, said: /^failed: the object store is refused/ })
    t.match(await command(['backup'], { BACKUP_S3_BUCKET: '' }), { code: 78, said: /BACKUP_S3_BUCKET: must be set/ })
    const same = {
      S3_ENDPOINT: env.BACKUP_S3_ENDPOINT,
      S3_BUCKET: env.BACKUP_S3_BUCKET,
      S3_ACCESS_KEY: 'a',
      S3_SECRET_KEY: 'b'
    }
    t.match(await command(['backup'], same), {
      code: 78,
      said: /BACKUP_S3_BUCKET: is the bucket of the product itself/
    })
    const plain = { NODE_ENV: 'production', BACKUP_S3_ENDPOINT: 'http://backups.example' }
    t.match(await command(['backup'], plain), { code: 78, said: /BACKUP_S3_ENDPOINT: must begin with https/ })
    t.match(await command(['backup', '--every', '0']), { code: 2, said: /must be a number of seconds/ })
  })
})

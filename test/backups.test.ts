import { spawn } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { archiveSkip, script, setArchiveCommand, startArchive, startBackupStore } from './archive.ts'
import { withClient } from './databases.ts'
import { eventually, temporaryFolder } from './harness.ts'
import { asRoot, bucket } from './object-stores.ts'

// rehearsal: continuous archiving, and its faults

/*
 * Continuous archiving by db/deploy/backup.sh: base backups and the write-ahead log in a bucket, and what its check sees. Restores are
 * in test/restores.test.ts.
 */

t.test('continuous archiving', { skip: archiveSkip, timeout: 540_000 }, async (t) => {
  const store = await startBackupStore(t)
  const archive = await startArchive(t, store)
  const { cluster, tool, toolWith } = archive
  const asSuperuser = <T>(work: Parameters<typeof withClient<T>>[1], url = cluster.url('postgres')) =>
    withClient(url, work)
  const { environment } = store

  await t.test('the check says that there is no base backup, and then that all is well', async (t) => {
    await t.rejects(tool('check'), { message: /there is no base backup/ })
    t.match(await tool('base'), /base backup of \d+ is done/)
    await archive.flush()
    t.match(await tool('check'), /base backup is 0 minutes old, and the log is archived/)
    t.match(await tool('list'), /^Backup ID/)
  })

  /** Writes rows, and fills three files of the log with next to nothing. */
  const fillLog = () =>
    asSuperuser(async (client) => {
      for (let file = 0; file < 3; file++) {
        await client.query('insert into marks values (null)')
        await client.query('select pg_switch_wal()')
      }
    })
  await t.test('a base backup that no restore of the last days needs is removed, with its log', async (t) => {
    const names = async () => (await tool('list')).split('\n').flatMap((line) => /^\d{8}T\d{6}/.exec(line)?.[0] ?? [])
    const [first] = await names()
    await toolWith({ BACKUP_DAYS: '0' }, 'base')
    const left = await names()
    t.equal(left.length, 1, 'the newest stays in any case')
    t.not(left[0], first)
  })

  await t.test('what is archived is encrypted at rest, where the server of the bucket can do so', async (t) => {
    await asSuperuser((client) => client.query("create table marks as select 'kept' as mark"))
    await archive.flush()
    const client = asRoot({
      endpoint: environment.BACKUP_S3_ENDPOINT as string,
      public_endpoint: undefined,
      region: 'us-east-1',
      bucket,
      access_key: environment.BACKUP_S3_ACCESS_KEY as string,
      secret_key: environment.BACKUP_S3_SECRET_KEY as string
    })
    const names: string[] = []
    for await (const { name } of client.listObjects(bucket, 'postgres/', true)) names.push(name as string)
    const [cluster = ''] = new Set(names.map((name) => name.split('/')[1]))
    t.match(cluster, /^\d{19}$/, 'one folder for the cluster')
    const kinds = ['base', 'wals']
    t.strictSame(new Set(names.map((name) => name.split('/')[2])), new Set(kinds))
    for (const kind of kinds) {
      const name = names.find((each) => each.includes(`/${kind}/`) && each.endsWith('.gz')) as string
      const { metaData } = await client.statObject(bucket, name)
      if (environment.BACKUP_ENCRYPTION) t.match(metaData, { 'x-amz-server-side-encryption': 'AES256' }, name)
    }
  })

  await t.test('an archive that fails is seen by the check, and no file of the log is lost', async (t) => {
    // it sends nothing, and says so
    await setArchiveCommand(cluster, 'exit 1')
    await asSuperuser(async (client) => {
      await client.query('insert into marks values (null)')
      await client.query('select pg_switch_wal()')
    })
    // asked by SQL, because each check starts several programs
    await eventually(async () => {
      const { rows } = await asSuperuser((client) =>
        client.query('select last_failed_time > last_archived_time as fails from pg_stat_archiver')
      )
      return rows[0].fails
    })
    await t.rejects(tool('check'), { message: /archiving fails since/ })
    await setArchiveCommand(cluster, `${script} wal %p`)
    await archive.flush()
    t.match(await tool('check'), /the log is archived/)
  })

  await t.test('an archive that never ends is seen too, which PostgreSQL does not count as a failure', async (t) => {
    await setArchiveCommand(cluster, 'kill -9 $$')
    await fillLog()
    t.match(await tool('check'), /the log is archived/, 'the last file was archived a moment ago')
    await t.rejects(toolWith({ BACKUP_LATE_AFTER: '0' }, 'check'), {
      message: /[34] files of the log wait, and nothing/
    })
    await setArchiveCommand(cluster, `${script} wal %p`)
    await archive.flush()
    t.match(await toolWith({ BACKUP_LATE_AFTER: '0' }, 'check'), /the log is archived/)
  })

  await t.test('nothing is archived for a cluster without a name', async (t) => {
    const folder = temporaryFolder(t)
    const withProgram = (name: string, text: string) => {
      writeFileSync(join(folder, name), `#!/bin/sh\n${text}\n`, { mode: 0o755 })
      return { PATH: `${folder}:${archive.env.PATH}` }
    }
    const dead = withProgram('pg_controldata', 'kill -9 $$')
    await t.rejects(toolWith(dead, 'wal', script), { message: /pg_controldata can not read the cluster/ })
    await t.rejects(toolWith(dead, 'fetch-wal', '00000002.history', join(folder, 'got')), { message: /can not read/ })
    const silent = withProgram('pg_controldata', 'echo "pg_control version number: 1300"')
    await t.rejects(toolWith(silent, 'wal', script), { message: /pg_controldata does not name the cluster/ })
    const mute = withProgram('psql', ':')
    await t.rejects(toolWith(mute, 'base'), { message: /the database gives no answer/ })
  })

  await t.test('a base backup that fails is not called done, and removes nothing', async (t) => {
    const folder = temporaryFolder(t)
    writeFileSync(join(folder, 'barman-cloud-backup'), '#!/bin/sh\nexit 1\n', { mode: 0o755 })
    const env = { ...archive.env, PATH: `${folder}:${archive.env.PATH}`, BACKUP_HOURS: '0', BACKUP_PAUSE: '60' }
    const child = spawn('/bin/sh', [script, 'schedule'], { env })
    t.teardown(() => child.kill('SIGTERM'))
    let said = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (said += chunk))
    await eventually(() => /is done|is tried again/.test(said))
    t.equal(said, 'the base backup failed, and is tried again\n')
  })

  await t.test('the way to another machine is encrypted', async (t) => {
    for (const url of ['http://backups.example', 'http://10.0.0.4:9000', 'http://127.0.0.1.example'])
      await t.rejects(toolWith({ BACKUP_S3_ENDPOINT: url }, 'list'), { message: /must begin with https:/ }, url)
  })
})

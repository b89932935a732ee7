import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { wrap } from '../db/embedded.ts'
import { archiveSkip, script, setArchiveCommand, startArchive, startBackupStore } from './archive.ts'
import type { Cluster } from './cluster.ts'
import { withClient } from './databases.ts'
import { eventually, temporaryFolder } from './harness.ts'
import { asRoot, bucket } from './object-stores.ts'

// rehearsal: continuous archiving, and a restore to a second of choice

/*
 * Continuous archiving by db/deploy/backup.sh: a base backup and the write-ahead log in a bucket, and a restore to a second of choice.
 */

/** Asks until the server is there and has recovered. */
async function asSoonAsWritable<T extends { rows: { recovering: boolean }[] }>(ask: () => Promise<T>): Promise<T> {
  let answer: T | undefined
  await eventually(async () => {
    await sleep(50)
    answer = await ask().catch(() => undefined)
    return answer?.rows[0]?.recovering === false
  }, 120_000)
  return answer as T
}

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
  const marksOf = (server: Cluster) =>
    asSuperuser(
      async (client) => (await client.query('select mark from marks')).rows.map(({ mark }) => mark),
      server.url('postgres')
    )

  await t.test('a base backup that no restore of the last days needs is removed, with its log', async (t) => {
    const names = async () => (await tool('list')).split('\n').flatMap((line) => /^\d{8}T\d{6}/.exec(line)?.[0] ?? [])
    const [first] = await names()
    await toolWith({ BACKUP_DAYS: '0' }, 'base')
    const left = await names()
    t.equal(left.length, 1, 'the newest stays in any case')
    t.not(left[0], first)
  })

  let between: Date | undefined
  let later: Date | undefined
  await t.test('what is archived is encrypted at rest, where the server of the bucket can do so', async (t) => {
    await asSuperuser(async (client) => {
      await client.query("create table marks as select 'kept' as mark")
      await sleep(20)
      const { rows } = await client.query('select clock_timestamp() as now')
      between = rows[0].now
      await sleep(20)
      await client.query("insert into marks values ('too late')")
      const { rows: after } = await client.query('select clock_timestamp() as now')
      later = after[0].now
      await sleep(20)
    })
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

  await t.test(
    'everything is restored to the second, from the bucket alone, for a server beside the product',
    async (t) => {
      await cluster.kill('SIGKILL')
      const folder = join(temporaryFolder(t), 'restored')
      mkdirSync(folder)
      const second = between as Date
      t.match(await tool('restore', folder, second.toISOString()), /is ready/)
      await t.rejects(tool('restore', folder), { message: /is not empty/ })
      const [command, words] = wrap('/bin/sh', [script, 'scratch', folder])
      const child = spawn(command, words, { env: archive.env, cwd: '/', stdio: 'ignore' })
      const exited = once(child, 'exit')
      t.teardown(async () => {
        child.kill('SIGQUIT')
        await exited
      })
      const { rows } = await asSoonAsWritable(() =>
        asSuperuser((client) =>
          client.query(`select mark, pg_is_in_recovery() as recovering, current_setting('archive_mode') as archive,
          current_setting('listen_addresses') as address, pg_last_xact_replay_timestamp() as at from marks`)
        )
      )
      t.match(rows, [{ mark: 'kept', archive: 'off', address: '127.0.0.1' }])
      t.ok(rows[0].at <= second, 'it knows to when it was restored')
      t.ok(rows[0].at > new Date(second.getTime() - 60_000))
      await t.rejects(tool('base'), { message: /archive_mode is off/ }, 'nor does it leave a trace in the bucket')
    }
  )

  await t.test(
    'after a restore there are two timelines, and the one to restore is named and not guessed',
    async (t) => {
      const folder = temporaryFolder(t)
      const first = await archive.restore(join(folder, 'first'), between, { archives: true })
      await asSuperuser((client) => client.query("insert into marks values ('afterwards')"), first.url('postgres'))
      await archive.flush(first)
      const own = { PGPORT: String(first.port) }
      await t.rejects(toolWith(own, 'check'), { message: /there is no base backup/ }, 'none of this timeline')
      await first.kill('SIGQUIT')

      mkdirSync(join(folder, 'none'))
      const lines = [
        'has several timelines, so name one in BACKUP_TIMELINE:',
        ' {2}1: archived from 20[^ ]+Z to 20[^ ]+Z',
        ' {2}2: branched off from 1, archived from 20[^ ]+Z to 20[^ ]+Z\n'
      ]
      await t.rejects(tool('restore', join(folder, 'none'), later?.toISOString() ?? ''), {
        message: new RegExp(lines.join('\n'))
      })
      await t.rejects(toolWith({ BACKUP_TIMELINE: '9' }, 'restore', join(folder, 'none')), {
        message: /there is no base backup on the way to timeline 9/
      })
      await t.rejects(toolWith({ BACKUP_TIMELINE: 'latest' }, 'restore', join(folder, 'none')), {
        message: /is no number of a timeline/
      })

      const again = await archive.restore(join(folder, 'again'), later, { timeline: '1' })
      t.strictSame(await marksOf(again), ['kept', 'too late'], 'a later second, which the restored server has left out')
      await again.kill('SIGQUIT')
      const newest = join(folder, 'none')
      t.match(await toolWith({ BACKUP_TIMELINE: '2' }, 'restore', newest), /recovers timeline 2 /)
      t.match(
        readFileSync(join(newest, 'backup_label'), 'utf8'),
        /START TIMELINE: 1\n/,
        'there is no other base backup'
      )
      t.match(readFileSync(join(newest, 'postgresql.auto.conf'), 'utf8'), /recovery_target_timeline = '2'/)
    }
  )

  await t.test('a time that nobody can mean is refused', async (t) => {
    const folder = temporaryFolder(t)
    await t.rejects(tool('restore', folder, '2026-11-29T10:15:00'), { message: /has no time zone/ })
    await t.rejects(tool('restore', folder, 'yesterday'), { message: /is no time/ })
    await t.rejects(toolWith({ BACKUP_TIMELINE: '1' }, 'restore', folder, '2001-01-01T00:00:00Z'), {
      message: /there is no base backup .*from before 2001/
    })
    t.strictSame(readFileSync(join(cluster.data, 'PG_VERSION'), 'utf8'), '16\n', 'the old files are as they were')
  })
})

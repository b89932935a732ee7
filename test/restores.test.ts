import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { wrap } from '../db/embedded.ts'
import { archiveSkip, script, startArchive, startBackupStore } from './archive.ts'
import type { Cluster } from './cluster.ts'
import { withClient } from './databases.ts'
import { eventually, temporaryFolder } from './harness.ts'

// rehearsal: restores to a second of choice

/*
 * Restores by db/deploy/backup.sh, from what a server has archived to a bucket.
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

t.test('restores from an archive', { skip: archiveSkip, timeout: 540_000 }, async (t) => {
  const archive = await startArchive(t, await startBackupStore(t))
  const { cluster, tool, toolWith } = archive
  const asSuperuser = <T>(work: Parameters<typeof withClient<T>>[1], url = cluster.url('postgres')) =>
    withClient(url, work)
  const marksOf = (server: Cluster) =>
    asSuperuser(
      async (client) => (await client.query('select mark from marks')).rows.map(({ mark }) => mark),
      server.url('postgres')
    )

  await tool('base')
  await asSuperuser((client) => client.query("create table marks as select 'kept' as mark"))
  /** A time of the database, before and after which nothing was written for a moment. */
  async function readTime(): Promise<Date> {
    await sleep(20)
    const { rows } = await asSuperuser((client) => client.query('select clock_timestamp() as now'))
    await sleep(20)
    return rows[0].now
  }
  const between = await readTime()
  await asSuperuser((client) => client.query("insert into marks values ('too late')"))
  const later = await readTime()
  // a restore to a time needs a later change, which says that the time has come
  await asSuperuser((client) => client.query('insert into marks values (null)'))
  await archive.flush()

  await t.test(
    'everything is restored to the second, from the bucket alone, for a server beside the product',
    async (t) => {
      await cluster.kill('SIGKILL')
      const folder = join(temporaryFolder(t), 'restored')
      mkdirSync(folder)
      t.match(await tool('restore', folder, between.toISOString()), /is ready/)
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
      t.ok(rows[0].at <= between, 'it knows to when it was restored')
      t.ok(rows[0].at > new Date(between.getTime() - 60_000))
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
      await t.rejects(tool('restore', join(folder, 'none'), later.toISOString()), {
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

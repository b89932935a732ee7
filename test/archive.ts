import { mkdirSync } from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Cluster, openCluster, startCluster } from './cluster.ts'
import { withClient } from './databases.ts'
import { eventually, type Owner, root, run } from './harness.ts'
import { bucket, s3Servers } from './object-stores.ts'
import { findPostgresTool, findProgram } from './parts.ts'

/*
 * A PostgreSQL that archives itself to an S3 server by db/deploy/backup.sh, as compose.backup.yaml has it, and restores from there.
 */

const barman = findProgram('barman-cloud-backup')
const controldata = findPostgresTool('pg_controldata')
export const s3Server = s3Servers.find(({ skip }) => skip === false)

/** The `skip` option of a test that archives: false, or what is missing. */
export const archiveSkip = barman.skip || controldata.skip || (s3Server ? false : 'there is no S3 server')

export const script = join(root, 'db', 'deploy', 'backup.sh')

export type Archive = {
  cluster: Cluster
  /** The variables of db/deploy/backup.sh. */
  env: Record<string, string>
  /** The folder in which the S3 server keeps its data. */
  folder: string
  /** Runs db/deploy/backup.sh, and resolves to all that it prints. Rejects with its error output. */
  tool(...words: string[]): Promise<string>
  /** Like `tool`, with other variables. */
  toolWith(more: Record<string, string>, ...words: string[]): Promise<string>
  /** Resolves when everything that was committed before the call is in the archive: of this server, or of a restored one. */
  flush(server?: Cluster): Promise<void>
  /**
   * Restores to a new folder, and resolves to the server there once it takes writes. It does not archive, unless it should.
   */
  restore(folder: string, time?: Date, how?: { timeline?: string; archives?: boolean }): Promise<Cluster>
}

/** Sets how the server archives its log. No start of the server is needed for it. */
export async function setArchiveCommand({ url }: Cluster, command: string): Promise<void> {
  await withClient(url('postgres'), async (client) => {
    await client.query(`alter system set archive_command = ${client.escapeLiteral(command)}`)
    await client.query('select pg_reload_conf()')
  })
}

/** Names the bucket for backups as the settings of the product do. */
export type BackupEnvironment = Record<`BACKUP_${string}`, string>

/** The key with which MinIO encrypts what it stores. */
const atRest = { MINIO_KMS_SECRET_KEY: `backups:${Buffer.alloc(32, 7).toString('base64')}` }

/** An S3 server for backups, apart from that of the product. MinIO encrypts what it stores. */
export async function startBackupStore(t: Owner): Promise<{ environment: BackupEnvironment; folder: string }> {
  if (!s3Server) throw new Error('there is no S3 server')
  const { s3, folder } = s3Server.name === 'MinIO' ? await s3Server.start(t, atRest) : await s3Server.start(t)
  const environment = {
    BACKUP_S3_ENDPOINT: s3.root.endpoint,
    BACKUP_S3_BUCKET: bucket,
    BACKUP_S3_ACCESS_KEY: s3.root.access_key,
    BACKUP_S3_SECRET_KEY: s3.root.secret_key,
    ...(s3Server.name === 'MinIO' && { BACKUP_ENCRYPTION: 'AES256' })
  }
  return { environment, folder }
}

/** Starts a migrated cluster that archives to the store. Its first base backup is not made yet. */
export async function startArchive(t: Owner, { environment, folder }: Awaited<ReturnType<typeof startBackupStore>>) {
  const env: Record<string, string> = {
    ...environment,
    // the programs of barman, and modules for them
    PATH: [dirname(barman.path), dirname(controldata.path), process.env.PATH].join(delimiter),
    PYTHONPATH: dirname(dirname(barman.path)),
    BACKUP_AT_ONCE: '1'
  }
  const cluster = await startCluster(t, { settings: ['archive_mode=on', 'archive_timeout=60'], env })
  await setArchiveCommand(cluster, `${script} wal %p`)
  const { hostname, port, username, password } = new URL(cluster.url('aggios_backup'))
  const login = { PGHOST: hostname, PGPORT: port, PGUSER: username, PGPASSWORD: password, PGDATABASE: 'aggios' }
  const variables: Record<string, string> = { ...env, ...login }
  const archive: Archive = {
    cluster,
    env: variables,
    folder,
    tool: (...words) => archive.toolWith({}, ...words),
    async toolWith(more, ...words) {
      const { stdout, stderr } = await run(script, words, { env: { ...variables, ...more } })
      return stdout + stderr
    },
    async flush(server = cluster) {
      await withClient(server.url('postgres'), async (client) => {
        const { rows } = await client.query('select pg_walfile_name(pg_switch_wal()) as name')
        await eventually(async () => {
          const { rows: done } = await client.query('select last_archived_wal as name from pg_stat_archiver')
          return done[0].name >= rows[0].name
        }, 60_000)
      })
    },
    async restore(folder, time, { timeline = '', archives = false } = {}) {
      mkdirSync(folder, { recursive: true })
      await archive.toolWith({ BACKUP_TIMELINE: timeline }, 'restore', folder, ...(time ? [time.toISOString()] : []))
      const settings = [archives ? 'archive_mode=on' : 'archive_mode=off']
      const restored = await openCluster(t, folder, cluster.url, { env, settings })
      await restored.start()
      await eventually(async () => {
        await sleep(50)
        return withClient(restored.url('postgres'), (client) => client.query('select pg_is_in_recovery() as yes')).then(
          ({ rows }) => !rows[0].yes,
          () => false
        )
      }, 120_000)
      return restored
    }
  }
  return archive
}

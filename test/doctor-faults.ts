import { chmodSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import type { Part } from '../src/cli/doctor/doctor.ts'
import type { Change, World } from './doctor-world.ts'
import { startFaultProxy } from './fault-proxy.ts'
import { eventually, type Owner } from './harness.ts'
import { freePort } from './ports.ts'
import { unusedRedisUrl } from './redis.ts'

/*
 * Faults of an installation, each with the codes under which the doctor must report it, and no others.
 */

export type Fault = {
  title: string
  finds: string[]
  /** Breaks something, and resolves to what is different in the settings. `owner` undoes it. */
  plant(world: World, owner: Owner): Change | Promise<Change>
  /** The parts of the installation that the doctor looks at: all that the fault can concern. */
  only: readonly Part[]
}

/** A fault, before it is known to which parts it belongs. */
type Draft = Omit<Fault, 'only'> & { only?: Fault['only'] }

const within = (part: Part, drafts: Draft[]): Fault[] => drafts.map((draft) => ({ only: [part], ...draft }))

const settings = (title: string, finds: string[], env: NonNullable<Change['env']>): Draft => ({
  title,
  finds,
  plant: () => ({ env })
})

/** A statement of the superuser, and the one that undoes it. */
const sql = (title: string, code: string, plant: string, undo: string, change: Change = {}): Draft => ({
  title,
  finds: [code],
  async plant({ admin }, owner) {
    owner.teardown(() => admin(undo))
    await admin(plant)
    return change
  }
})

const bound = (title: string, code: string, limits: NonNullable<Change['limits']>): Draft => ({
  title,
  finds: [code],
  plant: () => ({ limits })
})

const behaviour = (title: string, finds: string[], change: Partial<World['behaviour']>, rest: Change = {}): Draft => ({
  title,
  finds,
  plant(world, owner) {
    const before = { ...world.behaviour }
    owner.teardown(() => Object.assign(world.behaviour, before))
    Object.assign(world.behaviour, change)
    return rest
  }
})

const closed = async (scheme: string) => `${scheme}://127.0.0.1:${await freePort()}`
const holeOf = (product: string, fixed: string, branch = 1) => ({
  product,
  id: 'CVE-0',
  branch,
  fixed: [fixed],
  source: ''
})

const ofSettings = within('settings', [
  settings('a development server that others can reach', ['development_mode'], {
    NODE_ENV: 'development',
    HOST: '0.0.0.0'
  }),
  {
    title: 'the credentials of the owner where requests are served',
    finds: ['owner_credentials_served'],
    plant: ({ cluster }) => ({ env: { DATABASE_OWNER_URL: cluster.url('aggios_owner') } })
  },
  settings('a secret that is an example', ['weak_secret'], { S3_SECRET_KEY: 'changeme-and-then-some-more-bytes' }),
  settings('a short secret', ['weak_secret'], { S3_SECRET_KEY: 'k3y-0f-4t' }),
  {
    title: 'one password for two services',
    finds: ['shared_secret'],
    plant: ({ cluster }) => ({
      env: { S3_SECRET_KEY: decodeURIComponent(new URL(cluster.url('aggios_app')).password) }
    })
  },
  {
    title: 'a file of secrets that everybody can read',
    finds: ['secrets_readable'],
    plant({ folder }) {
      const dir = folder()
      writeFileSync(join(dir, '.env'), 'PORT=8080\n')
      chmodSync(join(dir, '.env'), 0o644)
      return { folder: dir }
    }
  },
  settings('a service in the clear on another host', ['plain_text_connection'], {
    NODE_ENV: 'development',
    BREACH_LIST_URL: 'http://breaches.invalid/range/'
  }),
  settings('no proxy that is trusted', ['trust_proxy_missing'], { TRUST_PROXY: '' }),
  settings('a whole continent that is trusted', ['trust_proxy_too_wide'], { TRUST_PROXY: '10.0.0.0/8' }),
  settings('attempts that nobody counts', ['rate_limits_off'], { RATE_LIMIT_AUTH: '0' }),
  settings('a store that is never swept', ['sweep_off'], { SWEEP: 'report' }),
  settings('mails that wait for ever', ['mail_not_sent'], { SMTP_URL: '' }),
  settings('two processes without Redis', ['redis_missing'], { WEB_CONCURRENCY: '2', REDIS_URL: '' }),
  settings('more processes than cores', ['redis_missing', 'too_many_processes'], {
    WEB_CONCURRENCY: String(availableParallelism() + 1),
    DATABASE_POOL: '1',
    REDIS_URL: ''
  })
])

const ofMachine = within('machine', [
  bound('a full disk', 'disk_full', { diskFullShare: 2 }),
  bound('a disk that is nearly full', 'disk_nearly_full', { diskNearlyFullShare: 2 }),
  bound('few file descriptors', 'few_file_descriptors', { descriptors: 2 ** 40 }),
  {
    title: 'an old image',
    finds: ['image_outdated'],
    plant({ folder }) {
      const dir = folder()
      const text =
        'services:\n  a: { image: "images.example/traefik:v3.6.18" }\n  b: { image: "redis:7.4-bookworm", ports: !override [] }\n'
      writeFileSync(join(dir, 'compose.yaml'), text)
      return { folder: dir }
    }
  }
])

const ofDatabase = within('database', [
  {
    title: 'a database that is away',
    finds: ['database_unreachable'],
    plant: async () => ({ databaseUrl: (await closed('postgres')).replace('//', '//aggios_app:x@') })
  },
  {
    title: 'a database in another country',
    finds: ['database_slow'],
    async plant({ cluster }, owner) {
      const proxy = await startFaultProxy(owner, cluster.port)
      await proxy.add({ type: 'latency', latency: 4, direction: 'downstream' })
      return { databaseUrl: proxy.through(cluster.url('aggios_app')), limits: { slowDatabaseMs: 3, checkMs: 30_000 } }
    }
  },
  {
    title: 'an old PostgreSQL',
    finds: ['database_outdated'],
    plant: () => ({ holes: [holeOf('PostgreSQL', '16.99')] })
  },
  sql(
    'commits that are not waited for',
    'database_not_durable',
    'alter database aggios set synchronous_commit = off',
    'alter database aggios reset synchronous_commit'
  ),
  sql(
    'a database that only reads',
    'database_read_only',
    'alter database aggios set default_transaction_read_only = on',
    'begin read write; alter database aggios reset default_transaction_read_only; commit'
  ),
  sql(
    'passwords of roles in MD5',
    'passwords_stored_as_md5',
    "alter database aggios set password_encryption = 'md5'",
    'alter database aggios reset password_encryption'
  ),
  settings('more connections than PostgreSQL accepts', ['too_few_connections'], { DATABASE_POOL: '500' }),
  sql(
    'a role that may open few connections',
    'too_few_connections',
    'alter role aggios_app connection limit 5',
    'alter role aggios_app connection limit -1'
  ),
  { title: 'a clock that is wrong', finds: ['clock_skew'], plant: () => ({ now: () => Date.now() + 60_000 }) },
  {
    title: 'a replica that is the primary',
    finds: ['replica_is_primary'],
    plant: ({ cluster }) => ({ env: { DATABASE_REPLICA_URL: cluster.url('aggios_app') } })
  },
  {
    title: 'a replica that is away',
    finds: ['replica_unreachable'],
    plant: async () => ({ env: { DATABASE_REPLICA_URL: await closed('postgres') } })
  },
  {
    title: 'a schema that was not migrated',
    finds: ['schema_outdated'],
    async plant({ admin }, owner) {
      const [row] = await admin(
        'delete from kysely_migration where name = (select max(name) from kysely_migration) returning *'
      )
      owner.teardown(() =>
        admin('insert into kysely_migration (name, timestamp) values ($1, $2)', [row?.name, row?.timestamp])
      )
      return {}
    }
  },
  sql(
    'an index that PostgreSQL left unfinished',
    'indexes_unbuilt',
    "update pg_index set indisvalid = false where indexrelid = 'tenants_slug_key'::regclass",
    "update pg_index set indisvalid = true where indexrelid = 'tenants_slug_key'::regclass"
  ),
  sql(
    'a schema that needs a newer version',
    'schema_too_new',
    "update schema_compatibility set required_step = '9999_later'",
    "update schema_compatibility set required_step = '0008_tenant_entry'"
  ),
  {
    title: 'a server that connects as the owner',
    finds: ['role_unsafe'],
    plant: ({ cluster }) => ({ databaseUrl: cluster.url('aggios_owner') })
  },
  sql(
    'a database that every role may connect to',
    'everybody_may_connect',
    'grant connect on database aggios to public',
    'revoke connect on database aggios from public'
  ),
  sql(
    'a directory that one can sign in as',
    'directory_may_sign_in',
    'alter role aggios_directory login',
    'alter role aggios_directory nologin'
  ),
  {
    title: 'no room for the next month of the audit log',
    finds: ['audit_months_missing'],
    async plant({ admin }, owner) {
      owner.teardown(() => admin('set role aggios_owner; select ensure_audit_partitions()'))
      await admin(
        `do $$ begin execute 'drop table audit_events_' || to_char((now() at time zone 'utc') + interval '1 month', 'yyyy_mm'); end $$`
      )
      return {}
    }
  }
])

const ofUpkeep = within('database', [
  {
    title: 'an archive that is away',
    finds: ['archiving_failing'],
    async plant({ admin }, owner) {
      const isFailing = async () =>
        (
          await admin(
            "select last_failed_time > coalesce(last_archived_time, last_failed_time - interval '1 s') as failing from pg_stat_archiver"
          )
        )[0]?.failing === true
      owner.teardown(async () => {
        await admin("alter system set archive_command = 'true'")
        await admin('select pg_reload_conf(), pg_switch_wal()')
        await eventually(async () => !(await isFailing()), 90_000)
      })
      await admin("alter system set archive_command = 'false'")
      await admin('select pg_reload_conf()')
      // the archiver reads its settings a moment later, and a log to which nothing was written is not switched
      await eventually(async () => {
        await admin("select pg_create_restore_point('doctor'), pg_switch_wal()")
        await sleep(500)
        return isFailing()
      }, 60_000)
      return {}
    }
  },
  {
    title: 'an archive that never ends, which PostgreSQL does not count as failing',
    finds: ['archiving_failing'],
    async plant({ admin }, owner) {
      const archived = async () =>
        (await admin('select archived_count::int as count from pg_stat_archiver'))[0]?.count as number
      const fill = "select pg_create_restore_point('doctor'), pg_switch_wal()"
      // from a file that was archived PostgreSQL counts those that wait
      const before = await archived()
      await admin(fill)
      await eventually(async () => (await archived()) > before, 90_000)
      owner.teardown(async () => {
        const stuck = await archived()
        await admin("alter system set archive_command = 'true'")
        await admin('select pg_reload_conf()')
        await eventually(async () => (await archived()) > stuck + 2, 90_000)
      })
      await admin("alter system set archive_command = 'kill -9 $$'")
      await admin('select pg_reload_conf()')
      for (let file = 0; file < 3; file++) await admin(fill)
      return { limits: { archiveLateSeconds: -1 } }
    }
  },
  bound('an archive that is old', 'archiving_late', { archiveSeconds: -1 }),
  {
    ...sql(
      'dumps that row security empties',
      'backup_role_blind',
      'alter role aggios_backup nobypassrls',
      'alter role aggios_backup bypassrls'
    ),
    finds: ['backup_role_blind', 'backup_role_wrong']
  },
  sql(
    'a backup that may not read',
    'backup_role_blind',
    'revoke pg_read_all_data from aggios_backup',
    'grant pg_read_all_data to aggios_backup'
  ),
  sql(
    'a replication slot that is forgotten',
    'slot_unused',
    "select pg_create_physical_replication_slot('forgotten', true)",
    "select pg_drop_replication_slot('forgotten')"
  ),
  sql(
    'a table that is not vacuumed',
    'autovacuum_off',
    'alter table outbox set (autovacuum_enabled = off)',
    'alter table outbox reset (autovacuum_enabled)'
  ),
  {
    title: 'dead rows that stay',
    finds: ['autovacuum_behind'],
    async plant({ admin }, owner) {
      owner.teardown(() => admin('vacuum sign_in_failures'))
      await admin(`insert into sign_in_failures (email) select 'x' || i || '@y.example' from generate_series(1, 500) i;
        delete from sign_in_failures; select pg_stat_force_next_flush()`)
      return { limits: { deadRows: 400 } }
    }
  },
  bound('transaction ids that run out', 'transaction_ids_old', { transactionIds: 1 }),
  {
    title: 'a transaction that was left open',
    finds: ['transaction_open'],
    async plant({ cluster }, owner) {
      const client = new pg.Client({ connectionString: cluster.url('aggios_app') })
      await client.connect()
      owner.teardown(() => client.end())
      await client.query('begin; select 1')
      return { limits: { openTransactionSeconds: 0 } }
    }
  },
  sql(
    'a job that does not succeed',
    'job_late',
    "insert into job_runs (name, succeeded_at, failed_at, error) values ('object_sweep', now() - interval '1 hour', now(), 'no')",
    'delete from job_runs'
  ),
  sql(
    'mails that nobody sends',
    'mails_late',
    "insert into account_mails (kind, address, due_at) values ('reset', 'x@y.example', now() - interval '1 hour')",
    'delete from account_mails'
  ),
  sql(
    'an audit log that is not sealed',
    'audit_not_sealed',
    `insert into audit_events (tenant_id, action, created_at)
      values (gen_random_uuid(), 'session.opened', greatest(date_trunc('month', now() at time zone 'utc') at time zone 'utc', now() - interval '1 hour'))`,
    'delete from audit_events',
    { limits: { sealSeconds: 0 } }
  )
])

const ofRedis = within('redis', [
  {
    title: 'a Redis that is away',
    finds: ['redis_unreachable'],
    plant: async () => ({ env: { REDIS_URL: await unusedRedisUrl() } })
  },
  bound('a Redis in another country', 'redis_slow', { slowRedisMs: -1 }),
  { title: 'an old Redis', finds: ['redis_outdated'], plant: () => ({ holes: [holeOf('Redis', '99.0.0', 0)] }) },
  {
    title: 'a Redis that lets everybody in',
    finds: ['redis_open'],
    async plant({ redis }, owner) {
      owner.teardown(() => redis?.admin.call('ACL', 'SETUSER', 'default', 'off'))
      await redis?.admin.call('ACL', 'SETUSER', 'default', 'on', 'nopass', '+ping')
      return {}
    }
  },
  {
    title: 'a Redis that follows another one',
    finds: ['redis_unusable'],
    async plant({ redis }, owner) {
      owner.teardown(() => redis?.admin.replicaof('NO', 'ONE'))
      await redis?.admin.replicaof('127.0.0.1', await freePort())
      return {}
    }
  }
])

const ofStore = within('store', [
  {
    title: 'a store that is away',
    finds: ['store_unreachable'],
    plant: async () => ({ env: { S3_ENDPOINT: await closed('http') } })
  },
  behaviour('a store that does not know the key', ['store_refuses'], { known: false }),
  bound('a store in another country', 'store_slow', { slowStoreMs: -1 }),
  behaviour(
    'an old store',
    ['store_outdated'],
    { server: 'SeaweedFS 30GB 4.1.0' },
    { holes: [holeOf('SeaweedFS', '99.0.0', 0)] }
  ),
  behaviour('a bucket that everybody can read', ['bucket_public'], { open: true }),
  behaviour('a key that may do everything', ['store_key_too_powerful'], { aclStatus: 200 }),
  {
    title: 'a store of another installation',
    finds: ['store_fenced'],
    plant({ s3 }, owner) {
      owner.teardown(() => s3.objects.delete('installation'))
      const mark = JSON.stringify({ installation: 'another', database: '1/2', generation: 3 })
      s3.objects.set('installation', { content: Buffer.from(mark), modified_at: new Date() })
      return {}
    }
  }
])

const ofServices = within('services', [
  {
    title: 'links in mails that lead nowhere',
    finds: ['app_url_unreachable'],
    plant: async () => ({ env: { APP_URL: await closed('https') } })
  },
  {
    title: 'a name that nobody has',
    finds: ['api_url_unreachable'],
    plant: () => ({ env: { API_URL: 'https://api.aggios.invalid', EXTRA_HOSTS: 'api.aggios.invalid' } })
  },
  behaviour('another site at the address of the API', ['api_url_unreachable'], { page: '<html>Welcome</html>' }),
  bound('a certificate that expires', 'certificate_expiring', { certificateDays: 60 }),
  {
    title: 'a mail server that is away',
    finds: ['mail_server_unreachable'],
    plant: async () => ({ env: { SMTP_URL: await closed('smtp') } })
  },
  {
    title: 'a list of breached passwords that is away',
    finds: ['breach_list_unreachable'],
    plant: async () => ({ env: { BREACH_LIST_URL: `${await closed('https')}/` } })
  },
  {
    title: 'a provider that is away',
    finds: ['provider_unreachable'],
    plant: async () => ({
      env: { GOOGLE_CLIENT_ID: 'a', GOOGLE_CLIENT_SECRET: 'b', GOOGLE_ISSUER: await closed('https') }
    })
  }
])

export const faults: readonly Fault[] = [
  ...ofSettings,
  ...ofMachine,
  ...ofDatabase,
  ...ofUpkeep,
  ...ofRedis,
  ...ofStore,
  ...ofServices
]

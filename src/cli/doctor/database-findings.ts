import { catalogueChecks } from '../../../db/catalogue/checks.ts'
import { error, type Kind, manual, warning } from './kinds.ts'

/** What the doctor can find in the database. */
export const databaseKinds: Readonly<Record<string, Kind>> = {
  database_unreachable: error(
    'The database cannot be reached',
    'Start PostgreSQL, or correct DATABASE_URL.',
    manual('the-database')
  ),
  database_slow: warning(
    'The database is far away',
    'Run the product in the same network as PostgreSQL.',
    'docs/scaling.md#where-each-limit-lies'
  ),
  database_outdated: error(
    'PostgreSQL has a known hole',
    'Install the fixed version of PostgreSQL, and restart it. Instead of the embedded one, set DATABASE_URL to a fixed one.',
    'docs/doctor.md#known-holes'
  ),
  database_unsupported: error(
    'The product is not made for this version of PostgreSQL',
    'Use PostgreSQL 16 or later.',
    manual('the-database')
  ),
  database_not_encrypted: error(
    'The connection to the database is not encrypted',
    'Append sslmode=verify-full to DATABASE_URL.',
    manual('what-production-refuses')
  ),
  database_not_durable: error(
    'The database forgets acknowledged changes when the machine stops',
    'Run `alter system reset` for the setting as a superuser, and `select pg_reload_conf()`.',
    manual('the-database')
  ),
  database_read_only: error(
    'The database accepts no changes',
    'Point DATABASE_URL at the primary, or set default_transaction_read_only to off.',
    manual('old-and-new-versions-on-one-schema')
  ),
  database_checksums_off: warning(
    'PostgreSQL does not notice when a disk returns wrong bytes',
    'Stop PostgreSQL, and run `pg_checksums --enable`.',
    manual('the-database')
  ),
  passwords_stored_as_md5: warning(
    'Passwords of roles are stored as MD5',
    'Set password_encryption to scram-sha-256, and set the passwords again.',
    manual('the-database')
  ),
  too_few_connections: error(
    'PostgreSQL accepts fewer connections than the processes may open',
    'Raise max_connections, lower DATABASE_POOL, or use PgBouncer.',
    'docs/scaling.md#postgresql-connections'
  ),
  clock_skew: error(
    'Clocks differ',
    'Run a time service (chrony, systemd-timesyncd) on both machines.',
    'docs/faults.md#what-operators-should-know'
  ),
  replica_unreachable: warning(
    'The replica cannot be reached, so exports load the primary',
    'Start the replica, or correct DATABASE_REPLICA_URL.',
    manual('a-read-replica')
  ),
  replica_is_primary: warning(
    'DATABASE_REPLICA_URL leads to a primary',
    'Point it at a streaming replica, or leave it out.',
    manual('a-read-replica')
  ),
  replica_behind: warning(
    'The replica is behind, so exports load the primary',
    'Look at the network and the disk of the replica.',
    manual('a-read-replica')
  ),
  // the schema and its rights
  indexes_unbuilt: warning(
    'An index is missing or unfinished, so statements are slow',
    'Run `npm run migrate`, or wait until the run that builds it has ended.',
    'docs/upgrades.md#indexes-on-large-tables'
  ),
  schema_outdated: error('The schema lacks a step of this version', 'npm run migrate', manual('the-database')),
  schema_too_new: error(
    'The schema needs a newer version of the product',
    'Start the newer version.',
    manual('old-and-new-versions-on-one-schema')
  ),
  role_unsafe: error(
    'The server connects as a role that row security does not hold',
    'Connect as aggios_app: `psql --file db/roles.sql` makes it.',
    manual('the-database')
  ),
  everybody_may_connect: error(
    'Every role of the server may connect to the database',
    'psql --file db/roles.sql',
    manual('the-database')
  ),
  directory_may_sign_in: error(
    'Somebody can sign in as the role that sees every agency',
    'Run `alter role aggios_directory nologin` as a superuser.',
    manual('the-database')
  ),
  ...Object.fromEntries(
    catalogueChecks.map(({ code, title }) => [
      code,
      error(
        `Not so: ${title}`,
        'Undo the change as aggios_owner; what the migrations made was reviewed.',
        'docs/architecture.md#how-agencies-are-kept-apart'
      )
    ])
  ),
  // backups and upkeep of the database
  archiving_failing: error(
    'PostgreSQL cannot archive its log: a restore would lose everything since, and the disk fills',
    'Correct archive_command: the log of PostgreSQL has its error.',
    'docs/doctor.md#backups'
  ),
  archiving_late: warning(
    'Nothing was archived for a long time: a restore would lose everything since',
    'Set archive_timeout to 60 s, and look whether the archive is reachable.',
    'docs/doctor.md#backups'
  ),
  no_backup_seen: warning(
    'No backup can be seen',
    'Archive the log of PostgreSQL, or make sure that something else makes backups.',
    'docs/doctor.md#backups'
  ),
  backup_role_blind: error(
    'The dumps of aggios_backup are empty or incomplete',
    'Run `psql --file db/roles.sql` as a superuser.',
    'docs/backups.md#dumps-of-the-database'
  ),
  slot_unused: warning(
    'A replication slot that nobody reads keeps the log, until the disk is full',
    'Start what reads it, or run `select pg_drop_replication_slot(…)`.',
    'docs/doctor.md#backups'
  ),
  autovacuum_off: error(
    'PostgreSQL does not remove dead rows, so tables grow without end',
    'Set autovacuum and track_counts to on, and remove autovacuum_enabled from the table.',
    'docs/doctor.md#tables-that-grow'
  ),
  autovacuum_behind: warning(
    'Dead rows stay in a table',
    'Run `vacuum` on the table, and raise autovacuum_vacuum_cost_limit.',
    'docs/doctor.md#tables-that-grow'
  ),
  transaction_ids_old: error(
    'PostgreSQL is running out of transaction ids, and will stop accepting changes',
    'Run `vacuumdb --all --freeze`, and end old transactions.',
    'docs/doctor.md#tables-that-grow'
  ),
  transaction_open: warning(
    'A transaction has been open for a long time, so no dead row can be removed',
    'Find it in pg_stat_activity, and run `select pg_terminate_backend(…)`.',
    'docs/doctor.md#tables-that-grow'
  ),
  audit_months_missing: error(
    'The audit log has no room for the next month, in which every change will fail',
    'Start a server: each makes the next months once a minute.',
    manual('the-audit-log')
  ),
  audit_not_sealed: warning(
    'The audit log is not sealed',
    'Look for "housekeeping failed" in the log of the server.',
    manual('the-audit-log')
  ),
  job_late: warning('A background job does not succeed', 'npm run aggios -- jobs list', manual('background-jobs')),
  mails_late: warning('Mails wait that should have been sent', 'npm run aggios -- outbox backlog', manual('mail'))
}

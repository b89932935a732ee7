import { type Environment, readSettings } from './environment.ts'
import { InvalidConfiguration } from './invalid-configuration.ts'
import { isPlain, unencryptedDatabases } from './production.ts'
import { optional, secret, setting, settings } from './settings.ts'
import { bucketName, httpUrl, integer, postgresUrl, text } from './value-readers.ts'

/** The settings of the jobs that copy files to a bucket for backups and back. The server has none of them. */
export const backupSettings = {
  backupS3Endpoint: optional('BACKUP_S3_ENDPOINT', httpUrl),
  backupS3Region: setting('BACKUP_S3_REGION', 'us-east-1', text),
  backupS3Bucket: optional('BACKUP_S3_BUCKET', bucketName),
  backupS3AccessKey: secret('BACKUP_S3_ACCESS_KEY', text),
  backupS3SecretKey: secret('BACKUP_S3_SECRET_KEY', text),
  backupDays: setting('BACKUP_DAYS', '14', integer(1, 3650))
}

const { nodeEnv, dataDir, databaseUrl, s3Endpoint, s3PublicEndpoint, s3Region, s3Bucket, s3AccessKey, s3SecretKey } =
  settings
/** Where the files and the rows are. */
const places = {
  nodeEnv,
  dataDir,
  databaseUrl,
  s3Endpoint,
  s3PublicEndpoint,
  s3Region,
  s3Bucket,
  s3AccessKey,
  s3SecretKey
}

export type BackupSettings = Omit<ReturnType<typeof readBackupConfig>, 'nodeEnv'>

/**
 * Reads the settings of the jobs that copy files to the backup and back. They need no other secret of the product.
 *
 * Throws InvalidConfiguration.
 */
export function readBackupConfig(env: Environment) {
  const { values, problems } = readSettings(env, { ...places, ...backupSettings })
  const given = {
    backupS3Endpoint: values.backupS3Endpoint,
    backupS3Bucket: values.backupS3Bucket,
    backupS3AccessKey: values.backupS3AccessKey,
    backupS3SecretKey: values.backupS3SecretKey
  }
  for (const key of ['backupS3Endpoint', 'backupS3Bucket', 'backupS3AccessKey', 'backupS3SecretKey'] as const) {
    const { name } = backupSettings[key]
    if (given[key] === undefined && !problems.some((line) => line.startsWith(name)))
      problems.push(`${name}: must be set`)
  }
  for (const { name, value } of [
    { name: 'S3_BUCKET', value: values.s3Bucket },
    { name: 'S3_ACCESS_KEY', value: values.s3AccessKey },
    { name: 'S3_SECRET_KEY', value: values.s3SecretKey }
  ]) {
    if (values.s3Endpoint && !value) problems.push(`${name}: must be set where there is an S3_ENDPOINT`)
  }
  if (values.s3Endpoint === given.backupS3Endpoint && values.s3Bucket === given.backupS3Bucket && values.s3Bucket) {
    problems.push('BACKUP_S3_BUCKET: is the bucket of the product itself')
  }
  if (values.nodeEnv === 'production') {
    problems.push(...unencryptedDatabases({ DATABASE_URL: values.databaseUrl }))
    for (const [name, url] of [
      ['S3_ENDPOINT', values.s3Endpoint],
      ['BACKUP_S3_ENDPOINT', given.backupS3Endpoint]
    ] as const) {
      if (isPlain(url, 'http:')) problems.push(`${name}: must begin with https:// to another host in production`)
    }
  }
  if (problems.length > 0) throw new InvalidConfiguration(problems)
  return { ...values, ...(given as { [K in keyof typeof given]: string }) }
}

const { databaseOwnerUrl, accessTokenTtl, fileRestoreFor } = settings
const restoreSettings = {
  databaseOwnerUrl,
  accessTokenTtl,
  fileRestoreFor,
  restoreDatabaseUrl: secret('RESTORE_DATABASE_URL', postgresUrl)
}

/**
 * Reads the settings of the command that restores one agency: those of backups, and two databases as the owner of the
 * tables.
 *
 * Throws InvalidConfiguration.
 */
export function readRestoreConfig(env: Environment) {
  const { values, problems } = readSettings(env, restoreSettings)
  const urls = { DATABASE_OWNER_URL: values.databaseOwnerUrl, RESTORE_DATABASE_URL: values.restoreDatabaseUrl }
  for (const [name, url] of Object.entries(urls)) {
    if (url === undefined && !problems.some((line) => line.startsWith(name))) problems.push(`${name}: must be set`)
  }
  if (env.NODE_ENV === 'production') problems.push(...unencryptedDatabases(urls))
  if (values.databaseOwnerUrl !== undefined && values.databaseOwnerUrl === values.restoreDatabaseUrl) {
    problems.push('RESTORE_DATABASE_URL: is the database of the product itself')
  }
  if (problems.length > 0) throw new InvalidConfiguration(problems)
  return {
    ...readBackupConfig(env),
    ...values,
    ...(values as { databaseOwnerUrl: string; restoreDatabaseUrl: string })
  }
}

/**
 * Reads the settings of the command that imports an agency: the store, and the database as the owner of the tables.
 *
 * Throws InvalidConfiguration.
 */
export function readImportConfig(env: Environment) {
  const { values, problems } = readSettings(env, { ...places, databaseOwnerUrl })
  const url = values.databaseOwnerUrl
  if (url === undefined && problems.length === 0) problems.push('DATABASE_OWNER_URL: must be set')
  if (values.nodeEnv === 'production') {
    problems.push(...unencryptedDatabases({ DATABASE_OWNER_URL: url }))
    if (isPlain(values.s3Endpoint, 'http:')) {
      problems.push('S3_ENDPOINT: must begin with https:// to another host in production')
    }
  }
  if (url === undefined || problems.length > 0) throw new InvalidConfiguration(problems)
  return { ...values, databaseOwnerUrl: url }
}

import { generalHosts, parseHost } from '../http/host-header.ts'
import { deriveKey } from '../keys.ts'
import { developmentSecret } from './development-secrets.ts'
import { type Environment, readSettings } from './environment.ts'
import { InvalidConfiguration } from './invalid-configuration.ts'
import { productionProblems, unencryptedDatabases } from './production.ts'
import { type Settings, settings } from './settings.ts'
import { isBelow } from './value-readers.ts'

/** The configuration of a process. Secrets are always present; `databaseUrl` is set once a database server is known. */
export type Config = Omit<Settings, 'jwtSecret' | 'passwordPepper' | 'appUrl' | 'apiUrl' | 'mailFrom' | 'logFormat'> & {
  jwtSecret: string[]
  passwordPepper: string[]
  appUrl: string
  /** The origin of the general host, where providers send people back to. */
  apiUrl: string
  mailFrom: string
  logFormat: NonNullable<Settings['logFormat']>
}

/**
 * Reads and checks the environment. In development, missing secrets are made once and kept under DATA_DIR.
 *
 * Throws InvalidConfiguration, which lists everything that is wrong.
 */
export function readConfig(env: Environment): Config {
  const { values: config, problems } = readSettings(env, settings)
  problems.push(...(config.nodeEnv === 'production' ? productionProblems(config) : []), ...conflictingSettings(config))
  if (problems.length > 0) throw new InvalidConfiguration(problems)

  const jwtSecret = nonEmpty(config.jwtSecret) ?? [developmentSecret(config.dataDir, 'jwt_secret')]
  const passwordPepper =
    nonEmpty(config.passwordPepper) ?? jwtSecret.map((each) => deriveKey(each, 'pepper').export().toString('base64url'))
  return {
    ...config,
    jwtSecret,
    passwordPepper,
    appUrl: config.appUrl ?? defaultAppUrl(config),
    apiUrl: config.apiUrl ?? defaultApiUrl(config),
    mailFrom: config.mailFrom ?? `Aggios <no-reply@${config.baseDomain}>`,
    logFormat: config.logFormat ?? (config.nodeEnv === 'development' && process.stdout.isTTY ? 'pretty' : 'json')
  }
}

/**
 * In production, clients reach the API through a proxy that ends TLS on the default port; the port of this process is
 * internal.
 */
function defaultAppUrl({ nodeEnv, baseDomain, port }: Settings): string {
  return nodeEnv === 'production' ? `https://{slug}.${baseDomain}` : `http://{slug}.${baseDomain}:${port}`
}

function defaultApiUrl({ nodeEnv, baseDomain, port }: Settings): string {
  return nodeEnv === 'production' ? `https://api.${baseDomain}` : `http://${baseDomain}:${port}`
}

/**
 * Reads the settings of the migration job only, so that the job needs no secret of the serving processes.
 *
 * Throws InvalidConfiguration.
 */
export function readMigrationConfig(env: Environment) {
  const { nodeEnv, databaseOwnerUrl, auditRetention } = settings
  const { values, problems } = readSettings(env, { nodeEnv, databaseOwnerUrl, auditRetention })
  const url = values.databaseOwnerUrl
  if (url === undefined && problems.length === 0) problems.push('DATABASE_OWNER_URL: must be set')
  if (values.nodeEnv === 'production') problems.push(...unencryptedDatabases({ DATABASE_OWNER_URL: url }))
  if (url === undefined || problems.length > 0) throw new InvalidConfiguration(problems)
  return { ...values, databaseOwnerUrl: url }
}

/** Whether reads are remembered. By default where the processes hear of each other's changes at once, or there is only one. */
export function remembersReads({ readMemory, redisUrl, webConcurrency }: Config): boolean {
  return readMemory === 'on' || (readMemory === 'auto' && (redisUrl !== undefined || webConcurrency === 1))
}

const nonEmpty = (values: string[] | undefined) => (values && values.length > 0 ? values : undefined)

/** Whether a request for this host gets to the general host: what providers send people back to must not be refused. */
function isServed(host: string, { baseDomain, extraHosts, nodeEnv }: Settings): boolean {
  const isGeneral = generalHosts(extraHosts, nodeEnv === 'development')
  return parseHost(host, baseDomain, isGeneral)?.kind === 'general'
}

/** Settings that are valid by themselves but not together. */
function conflictingSettings(config: Settings): string[] {
  const problems: string[] = []
  if (config.nodeEnv !== 'production') {
    if (config.jwtSecret?.some((value) => Buffer.byteLength(value) < 16)) {
      problems.push('JWT_SECRET: each value must have at least 16 bytes, 32 in production')
    }
  }
  for (const [name, values] of [
    ['JWT_SECRET', config.jwtSecret],
    ['PASSWORD_PEPPER', config.passwordPepper]
  ] as const) {
    if (new Set(values).size !== (values?.length ?? 0)) problems.push(`${name}: lists the same value twice`)
  }
  // every name under the base domain belongs to an agency
  const owned = config.extraHosts?.find((name) => `.${name}`.endsWith(`.${config.baseDomain}`))
  if (owned) problems.push(`EXTRA_HOSTS: ${owned} belongs to BASE_DOMAIN already`)
  const apiHost = config.apiUrl === undefined ? undefined : new URL(config.apiUrl).host
  if (apiHost !== undefined && !isServed(apiHost, config)) {
    const served = 'BASE_DOMAIN, api.<BASE_DOMAIN> or a name of EXTRA_HOSTS'
    problems.push(`API_URL: ${apiHost} is not a host on which this server serves all agencies: it must be ${served}`)
  }
  const rpId = config.passkeyRpId ?? config.baseDomain
  const beyond = config.passkeyOrigins?.find((origin) => origin.startsWith('https://') && !isBelow(origin, rpId))
  if (beyond) problems.push(`PASSKEY_ORIGINS: ${beyond} does not belong to ${rpId}, the domain of the passkeys`)
  const storage = { S3_BUCKET: config.s3Bucket, S3_ACCESS_KEY: config.s3AccessKey, S3_SECRET_KEY: config.s3SecretKey }
  for (const [name, value] of Object.entries(storage)) {
    if (config.s3Endpoint && !value) problems.push(`${name}: must be set where there is an S3_ENDPOINT`)
    if (!config.s3Endpoint && value) problems.push(`${name}: is set, but S3_ENDPOINT is not`)
  }
  for (const [name, id, secret] of [
    ['GOOGLE', config.googleClientId, config.googleClientSecret],
    ['GITHUB', config.githubClientId, config.githubClientSecret]
  ] as const) {
    if (Boolean(id) !== Boolean(secret)) {
      problems.push(
        `${name}_CLIENT_${id ? 'SECRET' : 'ID'}: must be set where there is ${name}_CLIENT_${id ? 'ID' : 'SECRET'}`
      )
    }
  }
  for (const [name, url] of [
    ['DATABASE_OWNER_URL', config.databaseOwnerUrl],
    ['DATABASE_REPLICA_URL', config.databaseReplicaUrl]
  ] as const) {
    if (url && !config.databaseUrl) problems.push(`${name}: is set, but DATABASE_URL is not`)
  }
  return problems
}

import { randomBytes } from 'node:crypto'
import { existsSync, linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { BlockList, isIP } from 'node:net'
import { join } from 'node:path'
import { deriveKey } from '../auth/keys.ts'
import { productionProblems, unencryptedDatabases } from './production.ts'

/** How many in how long: `10/1m`. `max` 0 switches the limit off. */
export type Rate = { max: number; window_ms: number }

type Setting<T> = {
  name: string
  /** As it would be written in the environment; undefined where there is none. */
  fallback: string | undefined
  secret: boolean
  read: (text: string) => T
}

/** A reader throws this with what is wrong with the text; the message never repeats the text of a secret. */
export class Unreadable extends Error {}

function setting<T>(name: string, fallback: string, read: (text: string) => T): Setting<T> {
  return { name, fallback, secret: false, read }
}
function optional<T>(name: string, read: (text: string) => T): Setting<T | undefined> {
  return { name, fallback: undefined, secret: false, read }
}
function secret<T>(name: string, read: (text: string) => T): Setting<T | undefined> {
  return { name, fallback: undefined, secret: true, read }
}

const text = (value: string) => value
const list = (value: string) => value.split(',').flatMap((item) => item.trim() || [])

function oneOf<const T extends string>(...values: T[]) {
  return (value: string): T => {
    const found = values.find((candidate) => candidate === value)
    if (!found) throw new Unreadable(`must be one of ${values.join(', ')}`)
    return found
  }
}

function integer(min: number, max: number) {
  return (value: string): number => {
    const number = /^\d{1,15}$/.test(value) ? Number(value) : Number.NaN
    if (!(number >= min && number <= max)) throw new Unreadable(`must be a whole number from ${min} to ${max}`)
    return number
  }
}

function domain(value: string): string {
  const lower = value.toLowerCase()
  const label = '[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?'
  if (!new RegExp(`^${label}(?:\\.${label})*$`).test(lower) || isIP(lower)) {
    throw new Unreadable('must be a domain name such as aggios.app')
  }
  return lower
}

/** Names and addresses as they stand in a Host header; `*.local` is every name under `local`. */
function hostNames(value: string): string[] {
  return list(value.toLowerCase()).map((name) => {
    const bare = name.replace(/^\[(.*)\]$/, '$1')
    if (isIP(bare)) return isIP(bare) === 6 ? `[${bare}]` : bare
    try {
      domain(name.replace(/^\*\./, ''))
    } catch {
      throw new Unreadable(`"${name}" is no host such as 127.0.0.1, host.docker.internal or *.local, without a port`)
    }
    return name
  })
}

function postgresUrl(value: string): string {
  if (!URL.canParse(value) || !/^postgres(ql)?:$/.test(new URL(value).protocol)) {
    throw new Unreadable('must be a URL that begins with postgres://')
  }
  return value
}

function smtpUrl(value: string): string {
  if (!URL.canParse(value) || !/^smtps?:$/.test(new URL(value).protocol)) {
    throw new Unreadable('must be a URL that begins with smtp:// or smtps://')
  }
  return value
}

/** Where links in mails lead; `{slug}` stands for the tenant's. */
function appUrl(value: string): string {
  const example = value.replaceAll('{slug}', 'acme')
  if (!/^https?:\/\//.test(example) || !URL.canParse(example) || new URL(example).search || new URL(example).hash) {
    throw new Unreadable('must be a URL such as https://{slug}.example.com')
  }
  return value.replace(/\/+$/, '')
}

function networks(value: string): string[] {
  for (const range of list(value)) {
    const [address = '', prefix, ...rest] = range.split('/')
    const family = isIP(address)
    const bits = prefix === undefined ? 0 : Number(prefix)
    const valid = family !== 0 && rest.length === 0 && (prefix === undefined || /^\d{1,3}$/.test(prefix))
    if (!valid || bits > (family === 4 ? 32 : 128)) {
      throw new Unreadable(`must be a list of addresses or CIDR ranges; "${range}" is neither`)
    }
    if (prefix !== undefined && bits === 0) throw new Unreadable(`"${range}" would trust everybody`)
    new BlockList().addSubnet(address, bits, family === 4 ? 'ipv4' : 'ipv6')
  }
  return list(value)
}

/** Exact web origins, spelled as a browser sends them. `*` is let through here and refused in production. */
function origins(value: string): string[] {
  for (const origin of list(value)) {
    if (origin === '*') continue
    if (!isOrigin(origin)) throw new Unreadable(`"${origin}" is not an origin such as https://app.example.com`)
  }
  return list(value)
}

/** What the web views of apps send: Capacitor, Ionic and Tauri serve an app's pages under a scheme of their own, without a port. */
const appOrigin = /^(?:capacitor|ionic|tauri):\/\/[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?$/

/** Whether a text is an origin, spelled as a browser or the web view of an app sends it: no path, no default port, lower case. */
export function isOrigin(value: string): boolean {
  if (appOrigin.test(value)) return true
  return /^https?:\/\/[^*]+$/.test(value) && URL.canParse(value) && new URL(value).origin === value
}

const unitMs: Record<string, number> = { s: 1000, m: 60_000, h: 3_600_000 }

/** `10/1m`; `0` is no limit. Throws Unreadable. */
export function rate(value: string): Rate {
  if (value === '0') return { max: 0, window_ms: unitMs.m as number }
  const match = /^([1-9]\d{0,8})\/([1-9]\d{0,3})([smh])$/.exec(value)
  if (!match) throw new Unreadable('must be a count and a time such as 10/1m, or 0 for no limit')
  return { max: Number(match[1]), window_ms: Number(match[2]) * (unitMs[match[3] as string] as number) }
}

const unitBytes: Record<string, number> = { '': 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40 }

/** Bytes: `100MiB`, `10GiB` or a number of them. Throws Unreadable. */
export function size(value: string): number {
  const [, count, unit = ''] = /^([1-9]\d{0,14})(|[KMGT]iB)$/.exec(value) ?? []
  const bytes = Number(count) * (unitBytes[unit] as number)
  if (!(bytes <= 2 ** 50)) throw new Unreadable('must be a size such as 100MiB or 10GiB')
  return bytes
}

function redisUrl(value: string): string {
  if (!URL.canParse(value) || !/^rediss?:$/.test(new URL(value).protocol) || new URL(value).hostname === '') {
    throw new Unreadable('must be a URL that begins with redis:// or rediss://')
  }
  return value
}

function httpUrl(value: string): string {
  if (!URL.canParse(value) || !/^https?:$/.test(new URL(value).protocol) || new URL(value).pathname !== '/') {
    throw new Unreadable('must be a URL such as https://storage.example.com, without a path')
  }
  return value.replace(/\/$/, '')
}

function bucketName(value: string): string {
  if (!/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/.test(value)) throw new Unreadable('must be the name of a bucket')
  return value
}

const years = 10 * 366 * 86_400

/** Every variable, once. `.env.example` and the README are tested against this table. */
export const settings = {
  nodeEnv: setting('NODE_ENV', 'development', oneOf('development', 'production')),
  host: setting('HOST', '127.0.0.1', text),
  port: setting('PORT', '8080', integer(0, 65_535)),
  metricsHost: setting('METRICS_HOST', '127.0.0.1', text),
  metricsPort: setting('METRICS_PORT', '0', integer(0, 65_535)),
  webConcurrency: setting('WEB_CONCURRENCY', '1', integer(1, 128)),
  baseDomain: setting('BASE_DOMAIN', 'localhost', domain),
  extraHosts: setting('EXTRA_HOSTS', '', hostNames),
  trustProxy: setting('TRUST_PROXY', '', networks),
  databaseUrl: secret('DATABASE_URL', postgresUrl),
  databaseOwnerUrl: secret('DATABASE_OWNER_URL', postgresUrl),
  databaseReplicaUrl: secret('DATABASE_REPLICA_URL', postgresUrl),
  databasePooler: setting('DATABASE_POOLER', 'none', oneOf('none', 'transaction')),
  databasePool: setting('DATABASE_POOL', '10', integer(1, 1000)),
  redisUrl: secret('REDIS_URL', redisUrl),
  dataDir: setting('DATA_DIR', '.aggios', text),
  s3Endpoint: optional('S3_ENDPOINT', httpUrl),
  s3Region: optional('S3_REGION', text),
  s3Bucket: optional('S3_BUCKET', bucketName),
  s3AccessKey: secret('S3_ACCESS_KEY', text),
  s3SecretKey: secret('S3_SECRET_KEY', text),
  s3PublicEndpoint: optional('S3_PUBLIC_ENDPOINT', httpUrl),
  maxFileSize: setting('MAX_FILE_SIZE', '100MiB', size),
  storageQuota: setting('STORAGE_QUOTA', '10GiB', size),
  maxFiles: setting('MAX_FILES', '1000000', integer(1, 1_000_000_000)),
  fileRestoreFor: setting('FILE_RESTORE_FOR', '604800', integer(0, years)),
  sweep: setting('SWEEP', 'on', oneOf('off', 'report', 'on')),
  jwtSecret: secret('JWT_SECRET', list),
  passwordPepper: secret('PASSWORD_PEPPER', list),
  passwordMinLength: setting('PASSWORD_MIN_LENGTH', '12', integer(8, 64)),
  accessTokenTtl: setting('ACCESS_TOKEN_TTL', '86400', integer(1, years)),
  refreshTokenTtl: setting('REFRESH_TOKEN_TTL', '604800', integer(1, years)),
  refreshGrace: setting('REFRESH_GRACE', '60', integer(0, 3600)),
  sessionMaxAge: setting('SESSION_MAX_AGE', '7776000', integer(1, years)),
  tenantPurgeAfter: setting('TENANT_PURGE_AFTER', '2592000', integer(0, years)),
  auditRetention: optional('AUDIT_RETENTION', integer(0, 36_500)),
  corsOrigins: setting('CORS_ORIGINS', '', origins),
  appUrl: optional('APP_URL', appUrl),
  smtpUrl: secret('SMTP_URL', smtpUrl),
  mailFrom: optional('MAIL_FROM', text),
  rateLimit: setting('RATE_LIMIT', '300/1m', rate),
  rateLimitTenant: setting('RATE_LIMIT_TENANT', '6000/1m', rate),
  rateLimitAuth: setting('RATE_LIMIT_AUTH', '10/1m', rate),
  tenantsPerDay: setting('TENANTS_PER_DAY', '5', integer(0, 1_000_000)),
  rateLimitMail: setting('RATE_LIMIT_MAIL', '50/24h', rate),
  rateLimitMailUnverified: setting('RATE_LIMIT_MAIL_UNVERIFIED', '20/24h', rate),
  rateLimitMailTo: setting('RATE_LIMIT_MAIL_TO', '3/24h', rate),
  logLevel: setting('LOG_LEVEL', 'info', oneOf('fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent')),
  shutdownTimeout: setting('SHUTDOWN_TIMEOUT', '15', integer(1, 3600))
}

type Settings = { [K in keyof typeof settings]: (typeof settings)[K] extends Setting<infer T> ? T : never }

/** What the process runs with. Secrets are present whatever the mode; the database URL is set once a server is known. */
export type Config = Omit<Settings, 'jwtSecret' | 'passwordPepper' | 'appUrl' | 'mailFrom'> & {
  jwtSecret: string[]
  passwordPepper: string[]
  appUrl: string
  mailFrom: string
}

export type Environment = Record<string, string | undefined>

/** Every problem of a configuration at once, each under the name of its variable. */
export class InvalidConfiguration extends Error {
  readonly problems: string[]
  constructor(problems: string[]) {
    const lines = problems.map((problem) => `  ${problem}`)
    super(`invalid configuration:${lines.length === 1 ? ` ${problems[0]}` : `\n${lines.join('\n')}`}`)
    this.problems = problems
  }
}

/**
 * Reads and checks the environment. An empty variable counts as absent; each secret may come from the file that
 * `NAME_FILE` names instead. In development secrets that are missing are made once and kept under DATA_DIR.
 *
 * Throws InvalidConfiguration with everything that is wrong.
 */
export function readConfig(env: Environment): Config {
  const { values: config, problems } = readEach(env, settings)
  problems.push(...(config.nodeEnv === 'production' ? productionProblems(config) : []), ...contradictions(config))
  if (problems.length > 0) throw new InvalidConfiguration(problems)

  const jwtSecret = nonEmpty(config.jwtSecret) ?? [developmentSecret(config.dataDir, 'jwt_secret')]
  const passwordPepper =
    nonEmpty(config.passwordPepper) ?? jwtSecret.map((each) => deriveKey(each, 'pepper').export().toString('base64url'))
  return {
    ...config,
    jwtSecret,
    passwordPepper,
    appUrl: config.appUrl ?? defaultAppUrl(config),
    mailFrom: config.mailFrom ?? `Aggios <no-reply@${config.baseDomain}>`
  }
}

/** In production people come by a proxy that ends TLS on the default port, whatever the port of this process is. */
function defaultAppUrl({ nodeEnv, baseDomain, port }: Settings): string {
  return nodeEnv === 'production' ? `https://{slug}.${baseDomain}` : `http://{slug}.${baseDomain}:${port}`
}

/** What the job that migrates needs, and nothing else: no secret of the processes that serve. Throws InvalidConfiguration. */
export function readMigrationConfig(env: Environment) {
  const { nodeEnv, databaseOwnerUrl, auditRetention } = settings
  const { values, problems } = readEach(env, { nodeEnv, databaseOwnerUrl, auditRetention })
  const url = values.databaseOwnerUrl
  if (url === undefined && problems.length === 0) problems.push('DATABASE_OWNER_URL: must be set')
  if (values.nodeEnv === 'production') problems.push(...unencryptedDatabases({ DATABASE_OWNER_URL: url }))
  if (url === undefined || problems.length > 0) throw new InvalidConfiguration(problems)
  return { ...values, databaseOwnerUrl: url }
}

/** Some of the settings. What can't be read stands at undefined, and its own problem is on the list. */
function readEach<K extends keyof Settings>(env: Environment, some: Pick<typeof settings, K>) {
  const problems: string[] = []
  const values: Record<string, unknown> = {}
  for (const [key, one] of Object.entries<Setting<unknown>>(some)) {
    try {
      const given = readText(env, one)
      values[key] = given === undefined ? undefined : one.read(given)
    } catch (err) {
      if (!(err instanceof Unreadable)) throw err
      problems.push(`${one.name}: ${err.message}`)
    }
  }
  return { values: values as Pick<Settings, K>, problems }
}

function readText(env: Environment, one: Setting<unknown>): string | undefined {
  const given = env[one.name] || undefined
  const file = one.secret ? env[`${one.name}_FILE`] || undefined : undefined
  if (file === undefined) return given ?? one.fallback
  if (given !== undefined) throw new Unreadable(`is set both directly and by ${one.name}_FILE`)
  try {
    return readFileSync(file, 'utf8').trim() || undefined
  } catch {
    throw new Unreadable(`${one.name}_FILE names a file that can't be read: ${file}`)
  }
}

const nonEmpty = (values: string[] | undefined) => (values && values.length > 0 ? values : undefined)

function contradictions(config: Settings): string[] {
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
  // a name under the base domain is an agency's, whatever else is said
  const owned = config.extraHosts?.find((name) => `.${name}`.endsWith(`.${config.baseDomain}`))
  if (owned) problems.push(`EXTRA_HOSTS: ${owned} belongs to BASE_DOMAIN already`)
  const storage = { S3_BUCKET: config.s3Bucket, S3_ACCESS_KEY: config.s3AccessKey, S3_SECRET_KEY: config.s3SecretKey }
  for (const [name, value] of Object.entries(storage)) {
    if (config.s3Endpoint && !value) problems.push(`${name}: must be set where there is an S3_ENDPOINT`)
    if (!config.s3Endpoint && value) problems.push(`${name}: is set, but S3_ENDPOINT is not`)
  }
  for (const [name, url] of [
    ['DATABASE_OWNER_URL', config.databaseOwnerUrl],
    ['DATABASE_REPLICA_URL', config.databaseReplicaUrl]
  ] as const) {
    if (url && !config.databaseUrl) problems.push(`${name}: is set, but DATABASE_URL is not`)
  }
  return problems
}

/**
 * A secret that is made on first use and kept in a file that only its owner can read.
 *
 * Written aside and linked into its place, so that the file is there whole or not at all, and of two first starts at once one
 * makes it and the other reads it. Throws InvalidConfiguration when the folder can't be used.
 */
export function developmentSecret(dataDir: string, name: string): string {
  const folder = join(dataDir, 'secrets')
  const file = join(folder, name)
  const value = readOrMake(dataDir, folder, file)
  if (value.length < 32) {
    throw new InvalidConfiguration([`DATA_DIR: ${file} holds no secret: remove it, and a new one is made`])
  }
  return value
}

function readOrMake(dataDir: string, folder: string, file: string): string {
  try {
    if (!existsSync(file)) {
      mkdirSync(folder, { recursive: true, mode: 0o700 })
      const unfinished = `${file}.${process.pid}.${randomBytes(4).toString('hex')}`
      writeFileSync(unfinished, randomBytes(32).toString('base64url'), { mode: 0o600, flag: 'wx', flush: true })
      try {
        linkSync(unfinished, file)
      } catch (err) {
        if ((err as NodeJS.ErrnoException).code !== 'EEXIST') throw err
      } finally {
        rmSync(unfinished)
      }
    }
    return readFileSync(file, 'utf8')
  } catch (err) {
    throw explainFolder(dataDir, err)
  }
}

/** An error of the system about the folder of DATA_DIR as an InvalidConfiguration with what to do; any other as it is. */
export function explainFolder(dataDir: string, err: unknown): unknown {
  const { code, syscall } = err as NodeJS.ErrnoException
  if (syscall === undefined) return err
  const remedy = code === 'ENOSPC' || code === 'EDQUOT' ? 'make room there' : 'let this user write there'
  return new InvalidConfiguration([`DATA_DIR: ${dataDir} can't be used (${code}): ${remedy}, or set another DATA_DIR`])
}

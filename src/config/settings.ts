import {
  appRedirects,
  appUrl,
  baseUrl,
  bucketName,
  domain,
  headers,
  hostNames,
  httpUrl,
  integer,
  issuer,
  list,
  nameServers,
  networks,
  oneOf,
  origins,
  passkeyOrigins,
  postgresUrl,
  prefixUrl,
  rate,
  redisUrl,
  sentryDsn,
  share,
  size,
  smtpUrl,
  text
} from './value-readers.ts'

export type Setting<T> = {
  name: string
  /** The default, as the environment would spell it; undefined where there is none. */
  fallback: string | undefined
  secret: boolean
  read: (text: string) => T
}

export function setting<T>(name: string, fallback: string, read: (text: string) => T): Setting<T> {
  return { name, fallback, secret: false, read }
}
export function optional<T>(name: string, read: (text: string) => T): Setting<T | undefined> {
  return { name, fallback: undefined, secret: false, read }
}
export function secret<T>(name: string, read: (text: string) => T): Setting<T | undefined> {
  return { name, fallback: undefined, secret: true, read }
}

const years = 10 * 366 * 86_400

/** Every environment variable of the server. Tests compare `.env.example` and the README with this table. */
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
  readMemory: setting('READ_MEMORY', 'auto', oneOf('auto', 'on', 'off')),
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
  eventStreams: setting('EVENT_STREAMS', '10000', integer(0, 1_000_000)),
  sweep: setting('SWEEP', 'on', oneOf('off', 'report', 'on')),
  jwtSecret: secret('JWT_SECRET', list),
  passwordPepper: secret('PASSWORD_PEPPER', list),
  passwordMinLength: setting('PASSWORD_MIN_LENGTH', '12', integer(8, 64)),
  breachListUrl: optional('BREACH_LIST_URL', prefixUrl),
  accessTokenTtl: setting('ACCESS_TOKEN_TTL', '86400', integer(1, years)),
  refreshTokenTtl: setting('REFRESH_TOKEN_TTL', '604800', integer(1, years)),
  refreshGrace: setting('REFRESH_GRACE', '60', integer(0, 3600)),
  sessionMaxAge: setting('SESSION_MAX_AGE', '7776000', integer(1, years)),
  tenantPurgeAfter: setting('TENANT_PURGE_AFTER', '2592000', integer(0, years)),
  auditRetention: optional('AUDIT_RETENTION', integer(0, 36_500)),
  dnsServers: setting('DNS_SERVERS', '', nameServers),
  corsOrigins: setting('CORS_ORIGINS', '', origins),
  passkeyRpId: optional('PASSKEY_RP_ID', domain),
  passkeyOrigins: setting('PASSKEY_ORIGINS', '', passkeyOrigins),
  appUrl: optional('APP_URL', appUrl),
  apiUrl: optional('API_URL', httpUrl),
  appRedirects: setting('APP_REDIRECTS', '', appRedirects),
  googleClientId: optional('GOOGLE_CLIENT_ID', text),
  googleClientSecret: secret('GOOGLE_CLIENT_SECRET', text),
  googleIssuer: setting('GOOGLE_ISSUER', 'https://accounts.google.com', issuer),
  githubClientId: optional('GITHUB_CLIENT_ID', text),
  githubClientSecret: secret('GITHUB_CLIENT_SECRET', text),
  githubUrl: setting('GITHUB_URL', 'https://github.com', httpUrl),
  smtpUrl: secret('SMTP_URL', smtpUrl),
  mailFrom: optional('MAIL_FROM', text),
  rateLimit: setting('RATE_LIMIT', '300/1m', rate),
  rateLimitKey: setting('RATE_LIMIT_KEY', '300/1m', rate),
  rateLimitTenant: setting('RATE_LIMIT_TENANT', '6000/1m', rate),
  rateLimitAuth: setting('RATE_LIMIT_AUTH', '10/1m', rate),
  tenantsPerDay: setting('TENANTS_PER_DAY', '5', integer(0, 1_000_000)),
  rateLimitMail: setting('RATE_LIMIT_MAIL', '50/24h', rate),
  rateLimitMailUnverified: setting('RATE_LIMIT_MAIL_UNVERIFIED', '20/24h', rate),
  rateLimitMailTo: setting('RATE_LIMIT_MAIL_TO', '3/24h', rate),
  logLevel: setting('LOG_LEVEL', 'info', oneOf('fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent')),
  logFormat: optional('LOG_FORMAT', oneOf('pretty', 'json', 'ecs', 'otel')),
  otlpEndpoint: optional('OTEL_EXPORTER_OTLP_ENDPOINT', baseUrl),
  otlpHeaders: secret('OTEL_EXPORTER_OTLP_HEADERS', headers),
  sentryDsn: secret('SENTRY_DSN', sentryDsn),
  tracesSampled: setting('OTEL_TRACES_SAMPLER_ARG', '0.1', share),
  shutdownTimeout: setting('SHUTDOWN_TIMEOUT', '15', integer(1, 3600))
}

/** The values of all settings. */
export type Settings = { [K in keyof typeof settings]: (typeof settings)[K] extends Setting<infer T> ? T : never }

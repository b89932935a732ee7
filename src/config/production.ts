/** The settings that production checks. */
export type ProductionSettings = {
  databaseUrl: string | undefined
  databaseOwnerUrl: string | undefined
  databaseReplicaUrl: string | undefined
  redisUrl: string | undefined
  smtpUrl: string | undefined
  otlpEndpoint: string | undefined
  sentryDsn: { endpoint: string } | undefined
  s3Endpoint: string | undefined
  appUrl: string | undefined
  apiUrl: string | undefined
  googleIssuer: string
  githubUrl: string
  s3SecretKey: string | undefined
  jwtSecret: string[] | undefined
  passwordPepper: string[] | undefined
  corsOrigins: string[] | undefined
  breachListUrl: string | undefined
}

const minSecretBytes = 32
const exampleValue = /change.?me|example|replace|insert|your.?(?:secret|key|pepper)|secret.?key|password|^(.)\1*$/i
/** Distinct characters in a secret. 32 random bytes have more, in hex, base64 and any other alphabet. */
const minDistinctCharacters = 8

/** Lists the reasons why production must not start. Each line begins with the name of the setting. */
export function productionProblems(config: ProductionSettings): string[] {
  const { databaseUrl, databaseOwnerUrl, databaseReplicaUrl } = config
  return [
    ...(databaseUrl ? [] : ['DATABASE_URL: must be set in production']),
    ...weakSecrets({ JWT_SECRET: config.jwtSecret, PASSWORD_PEPPER: config.passwordPepper }),
    ...sharedSecrets(config),
    ...(config.corsOrigins?.includes('*') ? ['CORS_ORIGINS: must not contain * in production'] : []),
    ...unencryptedDatabases({
      DATABASE_URL: databaseUrl,
      DATABASE_OWNER_URL: databaseOwnerUrl,
      DATABASE_REPLICA_URL: databaseReplicaUrl
    }),
    ...unencryptedServices(config)
  ]
}

function weakSecrets(secrets: Record<string, string[] | undefined>): string[] {
  return Object.entries(secrets).flatMap(([name, values = []]) => {
    const problems = values.length === 0 ? ['must be set in production'] : weaknessesOf(values, minSecretBytes)
    return problems.map((problem) => `${name}: ${problem}`)
  })
}

/** Lists what makes secrets weak: too few bytes, an example value, or one that can be guessed. */
export function weaknessesOf(values: readonly string[], minBytes: number): string[] {
  const problems: string[] = []
  if (values.some((value) => Buffer.byteLength(value) < minBytes)) {
    problems.push(`each value must have at least ${minBytes} bytes`)
  }
  if (values.some((value) => exampleValue.test(value))) problems.push('is an example value')
  else if (values.some(isGuessable)) problems.push('can be guessed; take 32 random bytes')
  return problems
}

/** Tells whether a secret has few distinct characters, repeats one piece, or is mostly a sequence such as `abcd`. */
function isGuessable(value: string): boolean {
  const steps = Array.from({ length: value.length - 1 }, (_, i) => value.charCodeAt(i + 1) - value.charCodeAt(i))
  const ordered = steps.filter((step) => Math.abs(step) <= 1).length
  return (
    new Set(value).size < minDistinctCharacters || /^(.{1,20}?)\1+$/.test(value) || ordered > (steps.length * 3) / 4
  )
}

/** Finds secrets that have the same value: a leak of one secret must not reveal another. */
function sharedSecrets({ jwtSecret = [], passwordPepper = [], s3SecretKey }: ProductionSettings): string[] {
  const others = new Set([...jwtSecret, s3SecretKey])
  const isShared = passwordPepper.some((value) => others.has(value))
  return [
    ...(isShared ? ['PASSWORD_PEPPER: is the value of another secret'] : []),
    ...(s3SecretKey !== undefined && jwtSecret.includes(s3SecretKey)
      ? ['S3_SECRET_KEY: is the value of another secret']
      : [])
  ]
}

/** Names the databases that are reached over a network without TLS, or with TLS that accepts any certificate. */
export function unencryptedDatabases(urls: Record<string, string | undefined>): string[] {
  return Object.entries(urls)
    .filter(([, url]) => url && !isPrivateDatabase(new URL(url)))
    .map(([name]) => `${name}: must ask for TLS (sslmode=verify-full) to another host in production`)
}

function isPrivateDatabase(url: URL): boolean {
  const host = url.searchParams.get('host') ?? url.hostname
  if (host === '' || host.startsWith('/') || isLoopback(host)) return true
  // `require` is not enough: today's driver verifies the certificate, its next version will not, and libpq never does
  const mode = url.searchParams.get('sslmode') ?? ''
  return ['verify-ca', 'verify-full'].includes(mode) && !url.searchParams.has('uselibpqcompat')
}

/** What `unencryptedServices` looks at. */
export type ServiceUrls = Pick<
  ProductionSettings,
  | 'redisUrl'
  | 'smtpUrl'
  | 'otlpEndpoint'
  | 'sentryDsn'
  | 's3Endpoint'
  | 'appUrl'
  | 'breachListUrl'
  | 'apiUrl'
  | 'googleIssuer'
  | 'githubUrl'
>

/**
 * Lists the services that get passwords, tokens or files unencrypted and are on another host, outside this container
 * network.
 */
export function unencryptedServices(config: ServiceUrls): string[] {
  const { redisUrl, smtpUrl, s3Endpoint, appUrl, breachListUrl } = config
  const problems: string[] = []
  if (isPlain(redisUrl, 'redis:')) problems.push('REDIS_URL: must begin with rediss:// to another host in production')
  // without requireTLS an attacker on the network can remove STARTTLS from the server's answer
  if (isPlain(smtpUrl, 'smtp:') && new URL(smtpUrl as string).searchParams.get('requireTLS') !== 'true') {
    problems.push('SMTP_URL: must begin with smtps://, or end with ?requireTLS=true, to another host in production')
  }
  if (isPlain(s3Endpoint, 'http:')) problems.push('S3_ENDPOINT: must begin with https:// to another host in production')
  // traces name agencies and people
  if (isPlain(config.otlpEndpoint, 'http:')) {
    problems.push('OTEL_EXPORTER_OTLP_ENDPOINT: must begin with https:// to another host in production')
  }
  if (isPlain(config.sentryDsn?.endpoint, 'http:')) {
    problems.push('SENTRY_DSN: must begin with https:// to another host in production')
  }
  // whoever is between could let bad passwords pass
  if (isPlain(breachListUrl, 'http:')) {
    problems.push('BREACH_LIST_URL: must begin with https:// to another host in production')
  }
  // the links in mails carry invitation tokens
  const link = appUrl?.replaceAll('{slug}', 'acme')
  if (isPlain(link, 'http:') && !new URL(link as string).hostname.endsWith('.localhost')) {
    problems.push('APP_URL: must begin with https:// in production')
  }
  // codes of sign-ins pass there
  for (const [name, url] of [
    ['API_URL', config.apiUrl],
    ['GOOGLE_ISSUER', config.googleIssuer],
    ['GITHUB_URL', config.githubUrl]
  ] as const) {
    if (url?.startsWith('http:')) problems.push(`${name}: must begin with https:// in production`)
  }
  return problems
}

/** Whether a URL leads to another host, outside this container network, by a protocol without encryption. */
export const isPlain = (url: string | undefined, protocol: string) =>
  url !== undefined && new URL(url).protocol === protocol && !isNearby(new URL(url).hostname)

/** This machine, or a host name without a dot. Container networks use such names; the public DNS does not. */
const isNearby = (host: string) => isLoopback(host) || /^[a-z0-9_-]+$/i.test(host)

export const isLoopback = (host: string) => /^(localhost|127\.[\d.]+|\[?::1\]?)$/.test(host)

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { InvalidConfiguration } from '../src/config/invalid-configuration.ts'
import { settings } from '../src/config/settings.ts'
import { otherStrongSecret, strongSecret } from './tokens.ts'

const nextKey = 'n3xt-k3y-0f-4t-l34st-th1rty-tw0-by'

/** The smallest configuration that production accepts. */
const production: Environment = {
  NODE_ENV: 'production',
  DATABASE_URL: 'postgres://aggios_app:pw@127.0.0.1/aggios',
  JWT_SECRET: strongSecret,
  PASSWORD_PEPPER: otherStrongSecret
}

/** The names of the variables that a configuration is refused for, sorted. */
function refusedNames(env: Environment): string[] {
  return [...new Set(refusals(env).map((problem) => problem.split(':', 1)[0] as string))].sort()
}

function refusals(env: Environment): string[] {
  try {
    readConfig(env)
  } catch (err) {
    if (err instanceof InvalidConfiguration) return err.problems
    throw err
  }
  return []
}

/** The defaults of the contract, as texts in the environment. undefined: the setting has no default. */
const contract: Record<string, string | undefined> = {
  NODE_ENV: 'development',
  HOST: '127.0.0.1',
  PORT: '8080',
  METRICS_HOST: '127.0.0.1',
  METRICS_PORT: '0',
  BASE_DOMAIN: 'localhost',
  EXTRA_HOSTS: '',
  TRUST_PROXY: '',
  DATABASE_URL: undefined,
  DATABASE_OWNER_URL: undefined,
  DATABASE_REPLICA_URL: undefined,
  DATABASE_POOLER: 'none',
  DATABASE_POOL: '10',
  REDIS_URL: undefined,
  READ_MEMORY: 'auto',
  S3_ENDPOINT: undefined,
  S3_REGION: undefined,
  S3_BUCKET: undefined,
  S3_ACCESS_KEY: undefined,
  S3_SECRET_KEY: undefined,
  S3_PUBLIC_ENDPOINT: undefined,
  DATA_DIR: '.aggios',
  JWT_SECRET: undefined,
  PASSWORD_PEPPER: undefined,
  PASSWORD_MIN_LENGTH: '12',
  BREACH_LIST_URL: undefined,
  APP_REDIRECTS: '',
  WEB_CONCURRENCY: '1',
  ACCESS_TOKEN_TTL: '86400',
  REFRESH_TOKEN_TTL: '604800',
  REFRESH_GRACE: '60',
  SESSION_MAX_AGE: '7776000',
  // made from BASE_DOMAIN, and in development from PORT, which is tested below
  APP_URL: undefined,
  // made from BASE_DOMAIN, and in development from PORT
  API_URL: undefined,
  GOOGLE_ISSUER: 'https://accounts.google.com',
  GITHUB_URL: 'https://github.com',
  TENANT_PURGE_AFTER: '2592000',
  AUDIT_RETENTION: undefined,
  FILE_RESTORE_FOR: '604800',
  SWEEP: 'on',
  DNS_SERVERS: '',
  CORS_ORIGINS: '',
  // made from BASE_DOMAIN
  PASSKEY_RP_ID: undefined,
  PASSKEY_ORIGINS: '',
  RATE_LIMIT: '300/1m',
  RATE_LIMIT_KEY: '300/1m',
  RATE_LIMIT_TENANT: '6000/1m',
  RATE_LIMIT_AUTH: '10/1m',
  TENANTS_PER_DAY: '5',
  RATE_LIMIT_MAIL: '50/24h',
  RATE_LIMIT_MAIL_UNVERIFIED: '20/24h',
  RATE_LIMIT_MAIL_TO: '3/24h',
  MAX_FILE_SIZE: '100MiB',
  STORAGE_QUOTA: '10GiB',
  MAX_FILES: '1000000',
  EVENT_STREAMS: '10000',
  GOOGLE_CLIENT_ID: undefined,
  GOOGLE_CLIENT_SECRET: undefined,
  GITHUB_CLIENT_ID: undefined,
  GITHUB_CLIENT_SECRET: undefined,
  OIDC_ISSUER: undefined,
  SMTP_URL: undefined,
  MAIL_FROM: undefined,
  LOG_LEVEL: 'info',
  LOG_FORMAT: undefined,
  SENTRY_DSN: undefined,
  OTEL_EXPORTER_OTLP_ENDPOINT: undefined,
  OTEL_EXPORTER_OTLP_HEADERS: undefined,
  OTEL_TRACES_SAMPLER_ARG: '0.1',
  SHUTDOWN_TIMEOUT: '15'
}

t.test('every default is the one that the contract promises', async (t) => {
  for (const { name, fallback } of Object.values(settings)) {
    t.ok(name in contract, `${name} is a name of the contract`)
    t.equal(fallback, contract[name], name)
  }
  const config = readConfig({ JWT_SECRET: strongSecret })
  t.equal(config.appUrl, 'http://{slug}.localhost:8080')
  t.equal(config.mailFrom, 'Aggios <no-reply@localhost>')
  const elsewhere = readConfig({ JWT_SECRET: strongSecret, BASE_DOMAIN: 'aggios.test', PORT: '9000' })
  t.equal(elsewhere.appUrl, 'http://{slug}.aggios.test:9000')
  const behindProxy = readConfig({ ...production, BASE_DOMAIN: 'aggios.app', PORT: '8080' })
  t.equal(behindProxy.appUrl, 'https://{slug}.aggios.app', 'what people see is no port of a process')
  t.match(config, {
    nodeEnv: 'development',
    host: '127.0.0.1',
    port: 8080,
    baseDomain: 'localhost',
    trustProxy: [],
    databaseUrl: undefined,
    databasePool: 10,
    dataDir: '.aggios',
    passwordMinLength: 12,
    accessTokenTtl: 24 * 3600,
    refreshTokenTtl: 7 * 24 * 3600,
    refreshGrace: 60,
    sessionMaxAge: 90 * 24 * 3600,
    corsOrigins: [],
    redisUrl: undefined,
    rateLimit: { max: 300, window_ms: 60_000 },
    rateLimitTenant: { max: 6000, window_ms: 60_000 },
    rateLimitAuth: { max: 10, window_ms: 60_000 },
    tenantsPerDay: 5,
    rateLimitMail: { max: 50, window_ms: 86_400_000 },
    rateLimitMailUnverified: { max: 20, window_ms: 86_400_000 },
    rateLimitMailTo: { max: 3, window_ms: 86_400_000 },
    logLevel: 'info',
    shutdownTimeout: 15
  })
})

t.test('every secret can come from a file, and only secrets', async (t) => {
  const secrets = Object.values(settings).filter((one) => one.secret)
  const names = secrets.map(({ name }) => name)
  for (const name of ['JWT_SECRET', 'PASSWORD_PEPPER', 'DATABASE_URL', 'DATABASE_OWNER_URL', 'DATABASE_REPLICA_URL']) {
    t.ok(names.includes(name), name)
  }
  for (const name of names) {
    const missing = refusals({ JWT_SECRET: strongSecret, [name]: undefined, [`${name}_FILE`]: '/nowhere/at/all' })
    t.ok(
      missing.some((problem) => problem.startsWith(`${name}: `) && problem.includes(`${name}_FILE`)),
      `${name}_FILE is read`
    )
  }
  t.equal(readConfig({ JWT_SECRET: strongSecret, PORT_FILE: '/nowhere/at/all' }).port, 8080)
})

t.test('a secret from a file is the text without the white space around it', async (t) => {
  const dir = t.testdir({ jwt: `${strongSecret},${nextKey}\n`, pepper: `  ${otherStrongSecret}\r\n`, empty: '\n' })
  const config = readConfig({ JWT_SECRET_FILE: join(dir, 'jwt'), PASSWORD_PEPPER_FILE: join(dir, 'pepper') })
  t.strictSame(config.jwtSecret, [strongSecret, nextKey])
  t.strictSame(config.passwordPepper, [otherStrongSecret])
  const { JWT_SECRET: _, ...others } = production
  t.strictSame(refusedNames({ ...others, JWT_SECRET_FILE: join(dir, 'empty') }), ['JWT_SECRET'], 'an empty file')
  t.strictSame(refusedNames({ ...others, JWT_SECRET_FILE: dir }), ['JWT_SECRET'], 'a folder')
  t.strictSame(refusals({ ...others, JWT_SECRET_FILE: join(dir, 'jwt') }), [], 'production starts from files')
})

t.test('a secret that is set twice is refused, whichever comes first', async (t) => {
  const dir = t.testdir({ jwt: strongSecret })
  const problems = refusals({ JWT_SECRET_FILE: join(dir, 'jwt'), JWT_SECRET: otherStrongSecret })
  t.match(problems, [/^JWT_SECRET: .*JWT_SECRET_FILE/])
  t.notMatch(problems.join(), otherStrongSecret)
  t.strictSame(
    readConfig({ JWT_SECRET_FILE: join(dir, 'jwt'), JWT_SECRET: '' }).jwtSecret,
    [strongSecret],
    'empty is absent'
  )
  t.strictSame(
    readConfig({ JWT_SECRET_FILE: '', JWT_SECRET: strongSecret }).jwtSecret,
    [strongSecret],
    'an empty file name too'
  )
})

t.test('everything that is wrong is said at once, each by its name', async (t) => {
  const wrong = {
    NODE_ENV: 'staging',
    PORT: '80a',
    BASE_DOMAIN: 'not a domain',
    EXTRA_HOSTS: 'localhost:8080',
    TRUST_PROXY: '10.0.0.0/8,everybody',
    DATABASE_URL: 'mysql://root@localhost/x',
    DATABASE_OWNER_URL: 'neither',
    DATABASE_REPLICA_URL: 'http://replica.example',
    DATABASE_POOLER: 'session',
    DATABASE_POOL: '0',
    JWT_SECRET: 'short',
    PASSWORD_MIN_LENGTH: '7',
    BREACH_LIST_URL: 'https://breaches.example/range',
    OTEL_EXPORTER_OTLP_ENDPOINT: 'https://collector.example/?key=1',
    OTEL_EXPORTER_OTLP_HEADERS: 'no value',
    OTEL_TRACES_SAMPLER_ARG: '1.5',
    SENTRY_DSN: 'https://sentry.example/42',
    ACCESS_TOKEN_TTL: '-1',
    REFRESH_TOKEN_TTL: '1d',
    REFRESH_GRACE: '3601',
    SESSION_MAX_AGE: '1.5',
    CORS_ORIGINS: 'https://a.example/path',
    PASSKEY_RP_ID: 'https://a.example',
    PASSKEY_ORIGINS: 'android:apk-key-hash:short',
    REDIS_URL: 'localhost:6379',
    RATE_LIMIT: '300/day',
    RATE_LIMIT_TENANT: 'many',
    RATE_LIMIT_AUTH: 'often',
    LOG_LEVEL: 'loud',
    SHUTDOWN_TIMEOUT: '0'
  }
  t.strictSame(refusedNames(wrong), Object.keys(wrong).sort())
  try {
    readConfig(wrong)
    t.fail('it was accepted')
  } catch (err) {
    for (const name of Object.keys(wrong)) t.match((err as Error).message, `${name}: `, `${name} is in the message`)
  }
})

t.test('no complaint repeats the text of a secret', async (t) => {
  const canary = 'canary'
  const messages = [
    ...refusals({
      JWT_SECRET: canary,
      DATABASE_URL: `http://${canary}@x`,
      DATABASE_OWNER_URL: canary,
      DATABASE_REPLICA_URL: canary,
      REDIS_URL: `http://${canary}@x`
    }),
    ...refusals({ ...production, JWT_SECRET: `${canary}-example`, PASSWORD_PEPPER: `${canary},${canary}` }),
    ...refusals({ ...production, DATABASE_URL: `postgres://aggios_app:${canary}@db.${canary}.example/aggios` })
  ]
  // an error of a request would print the whole URL
  for (const name of ['BREACH_LIST_URL', 'APP_URL', 'API_URL', 'GITHUB_URL', 'GOOGLE_ISSUER', 'S3_ENDPOINT']) {
    const said = refusals({ JWT_SECRET: strongSecret, [name]: `https://mirror:${canary}@service.example/` })
    t.match(said.join('\n'), `${name}: `)
    messages.push(...said)
  }
  t.ok(messages.length >= 6)
  t.notMatch(messages.join('\n'), canary)
})

t.test('a number is a whole number within its bounds, and nothing that merely begins with one', async (t) => {
  for (const PORT of ['8080x', '0x10', '1e3', ' 8080', '-1', '65536', '80.5', '9'.repeat(20)]) {
    t.strictSame(refusedNames({ JWT_SECRET: strongSecret, PORT }), ['PORT'], JSON.stringify(PORT))
  }
  t.equal(readConfig({ JWT_SECRET: strongSecret, PORT: '0' }).port, 0)
  t.equal(readConfig({ JWT_SECRET: strongSecret, PORT: '' }).port, 8080, 'empty is absent')
})

t.test('a rate is a count and a time, or nothing', async (t) => {
  const rateOf = (RATE_LIMIT_AUTH: string) => readConfig({ JWT_SECRET: strongSecret, RATE_LIMIT_AUTH }).rateLimitAuth
  t.strictSame(rateOf('5/30s'), { max: 5, window_ms: 30_000 })
  t.strictSame(rateOf('100/2h'), { max: 100, window_ms: 7_200_000 })
  t.equal(rateOf('0').max, 0, 'off')
  for (const RATE_LIMIT_AUTH of ['10', '10/m', '0/1m', '10/0m', '-1/1m', '10/1d', '10/1m,5/1s']) {
    t.strictSame(refusedNames({ JWT_SECRET: strongSecret, RATE_LIMIT_AUTH }), ['RATE_LIMIT_AUTH'], RATE_LIMIT_AUTH)
  }
})

t.test('a proxy is trusted by its address, never by a number of hops and never everybody', async (t) => {
  for (const TRUST_PROXY of [
    'true',
    '1',
    '2',
    '0.0.0.0/0',
    '::/0',
    '10.0.0.0/33',
    'proxy.example',
    '10.0.0.0/8/8',
    '::ffff:10.0.0.0/96'
  ]) {
    t.strictSame(refusedNames({ JWT_SECRET: strongSecret, TRUST_PROXY }), ['TRUST_PROXY'], TRUST_PROXY)
  }
  const { trustProxy } = readConfig({ JWT_SECRET: strongSecret, TRUST_PROXY: '10.0.0.0/8, fd00::/8,127.0.0.1' })
  t.strictSame(trustProxy, ['10.0.0.0/8', 'fd00::/8', '127.0.0.1'])
})

t.test('an origin is spelled as a browser sends it', async (t) => {
  const spellings = ['https://a.example/', 'a.example', 'HTTPS://a.example', 'https://a.example:443', 'null', 'ftp://a']
  for (const CORS_ORIGINS of spellings) {
    t.strictSame(refusedNames({ JWT_SECRET: strongSecret, CORS_ORIGINS }), ['CORS_ORIGINS'], CORS_ORIGINS)
  }
  const { corsOrigins } = readConfig({
    JWT_SECRET: strongSecret,
    CORS_ORIGINS: 'https://a.example, http://b.example:3000 ,'
  })
  t.strictSame(corsOrigins, ['https://a.example', 'http://b.example:3000'])
})

t.test('an app may have an origin with a scheme of its own', async (t) => {
  const apps = ['capacitor://localhost', 'ionic://localhost', 'tauri://localhost', 'capacitor://app.acme.example']
  t.strictSame(readConfig({ ...production, CORS_ORIGINS: apps.join() }).corsOrigins, apps)
  for (const CORS_ORIGINS of ['capacitor://', 'capacitor:localhost', 'ionic://localhost/', 'ionic://localhost:80']) {
    t.strictSame(refusedNames({ ...production, CORS_ORIGINS }), ['CORS_ORIGINS'], CORS_ORIGINS)
  }
  const android = `android:apk-key-hash:${'A'.repeat(43)}`
  const domain = { ...production, BASE_DOMAIN: 'aggios.app' }
  const natives = readConfig({ ...domain, PASSKEY_ORIGINS: `${android}, https://aggios.app` })
  t.strictSame(natives.passkeyOrigins, [android, 'https://aggios.app'])
  for (const PASSKEY_ORIGINS of [
    'https://aggios.example',
    'http://aggios.app',
    'https://notaggios.app',
    '*',
    'ios:x'
  ]) {
    t.strictSame(refusedNames({ ...domain, PASSKEY_ORIGINS }), ['PASSKEY_ORIGINS'], PASSKEY_ORIGINS)
  }
  for (const CORS_ORIGINS of ['Capacitor://localhost', 'capacitor://*', 'file://localhost', 'data://localhost']) {
    t.strictSame(refusedNames({ ...production, CORS_ORIGINS }), ['CORS_ORIGINS'], CORS_ORIGINS)
  }
})

t.test('more hosts are names and addresses as a Host header has them, and none of an agency', async (t) => {
  const { extraHosts } = readConfig({
    ...production,
    EXTRA_HOSTS: '127.0.0.1, ::1,[::1],Host.docker.internal, *.LOCAL'
  })
  t.strictSame(extraHosts, ['127.0.0.1', '[::1]', '[::1]', 'host.docker.internal', '*.local'])
  const wrong = ['*', '*.', 'a.*.local', 'localhost:8080', 'http://localhost', 'a b', '*.127.0.0.1', '-a', '10.0.0.0/8']
  for (const EXTRA_HOSTS of wrong) {
    t.strictSame(refusedNames({ JWT_SECRET: strongSecret, EXTRA_HOSTS }), ['EXTRA_HOSTS'], EXTRA_HOSTS)
  }
  for (const EXTRA_HOSTS of ['aggios.test', 'acme.aggios.test', '*.aggios.test', '*.a.aggios.test']) {
    const env = { JWT_SECRET: strongSecret, BASE_DOMAIN: 'aggios.test', EXTRA_HOSTS }
    t.strictSame(refusedNames(env), ['EXTRA_HOSTS'], EXTRA_HOSTS)
  }
})

t.test('production', async (t) => {
  t.test('starts with a database and two good secrets', async (t) => {
    t.strictSame(refusals(production), [])
    t.strictSame(refusals({ ...production, JWT_SECRET: `${strongSecret},${nextKey}` }), [], 'a list')
  })
  t.test('makes nothing up: what is missing is named', async (t) => {
    const dir = t.testdir()
    const env = { NODE_ENV: 'production', DATA_DIR: join(dir, 'data') }
    t.strictSame(refusedNames(env), ['DATABASE_URL', 'JWT_SECRET', 'PASSWORD_PEPPER'])
    t.strictSame(readdirSync(dir), [], 'no secret was made')
  })
  t.test('refuses a secret under 32 bytes, also as one of a list', async (t) => {
    for (const name of ['JWT_SECRET', 'PASSWORD_PEPPER']) {
      const short = 'q7w8e5r2t9y1u4i6o3p0a8s5d7f2g9h'
      t.equal(short.length, 31)
      t.strictSame(refusedNames({ ...production, [name]: short }), [name], name)
      t.strictSame(refusedNames({ ...production, [name]: `${`${short}y`},${short}` }), [name], `${name} in a list`)
      t.strictSame(refusals({ ...production, [name]: `${short}y` }), [], `${name} of 32 bytes`)
    }
  })
  t.test('refuses example values, however long', async (t) => {
    const examples = [
      'change-me-change-me-change-me-change-me',
      'changeme'.repeat(5),
      'CHANGE_ME_to_something_of_32_bytes_please',
      'your-secret-key-goes-here-your-secret-key',
      'this-is-an-example-value-of-32-bytes-or-so',
      'please replace me with 32 random bytes !!',
      'x'.repeat(48)
    ]
    for (const name of ['JWT_SECRET', 'PASSWORD_PEPPER']) {
      for (const value of examples) t.strictSame(refusedNames({ ...production, [name]: value }), [name], value)
    }
  })
  t.test('refuses secrets that can be guessed, and one secret for two purposes', async (t) => {
    const guessable = [
      '0123456789abcdefghijklmnopqrstuv',
      'zyxwvutsrqponmlkjihgfedcba987654',
      'tenletters'.repeat(4),
      '01'.repeat(20)
    ]
    for (const name of ['JWT_SECRET', 'PASSWORD_PEPPER']) {
      for (const value of guessable) t.strictSame(refusedNames({ ...production, [name]: value }), [name], value)
    }
    const same = production.JWT_SECRET
    t.strictSame(refusedNames({ ...production, PASSWORD_PEPPER: same }), ['PASSWORD_PEPPER'])
    const s3 = { S3_ENDPOINT: 'https://s3.example', S3_BUCKET: 'bucket', S3_ACCESS_KEY: 'a' }
    t.strictSame(refusedNames({ ...production, ...s3, S3_SECRET_KEY: same }), ['S3_SECRET_KEY'])
    t.strictSame(refusals({ ...production, ...s3, S3_SECRET_KEY: 'another one' }), [])
  })
  t.test('refuses Redis, mail, S3 and links in the clear to another host', async (t) => {
    const s3 = { S3_BUCKET: 'bucket', S3_ACCESS_KEY: 'a', S3_SECRET_KEY: 'k' }
    const plain: [name: string, value: string, more: object][] = [
      ['REDIS_URL', 'redis://redis.example:6379', {}],
      ['REDIS_URL', 'redis://10.0.0.5:6379', {}],
      ['SMTP_URL', 'smtp://user:pass@mail.example', {}],
      ['SMTP_URL', 'smtp://mail.example?requireTLS=false', {}],
      ['BREACH_LIST_URL', 'http://breaches.example/range/', {}],
      ['OTEL_EXPORTER_OTLP_ENDPOINT', 'http://collector.example:4318', {}],
      ['S3_ENDPOINT', 'http://s3.example', s3]
    ]
    for (const [name, value, more] of plain) {
      t.strictSame(refusedNames({ ...production, ...more, [name]: value }), [name], value)
    }
    const links = ['http://{slug}.aggios.app', 'http://app.example/{slug}', 'http://10.0.0.5:8080']
    for (const url of links) t.strictSame(refusedNames({ ...production, APP_URL: url }), ['APP_URL'], url)
    const good: [name: string, value: string, more: object][] = [
      ['APP_URL', 'https://{slug}.aggios.app', {}],
      ['APP_URL', 'http://{slug}.localhost:8080', {}],
      ['APP_URL', 'http://127.0.0.1:8080/{slug}', {}],
      ['REDIS_URL', 'rediss://redis.example:6379', {}],
      ['REDIS_URL', 'redis://redis:6379', {}],
      ['REDIS_URL', 'redis://127.0.0.1:6379', {}],
      ['SMTP_URL', 'smtps://mail.example', {}],
      ['BREACH_LIST_URL', 'https://breaches.example/range/', {}],
      ['BREACH_LIST_URL', 'http://localhost:9000/range/', {}],
      ['SMTP_URL', 'smtp://mail.example:587?requireTLS=true', {}],
      ['S3_ENDPOINT', 'https://s3.example', s3],
      ['S3_ENDPOINT', 'http://minio:9000', s3]
    ]
    for (const [name, value, more] of good) t.strictSame(refusals({ ...production, ...more, [name]: value }), [], value)
  })
  t.test('refuses any origin at all', async (t) => {
    t.strictSame(refusedNames({ ...production, CORS_ORIGINS: '*' }), ['CORS_ORIGINS'])
    t.strictSame(refusedNames({ ...production, CORS_ORIGINS: 'https://a.example,*' }), ['CORS_ORIGINS'])
    t.strictSame(refusals({ ...production, CORS_ORIGINS: 'https://a.example' }), [])
  })
  t.test('refuses PostgreSQL on another host without TLS', async (t) => {
    const others = [
      'postgres://u:p@db.example/aggios',
      'postgres://u:p@10.0.0.5/aggios',
      'postgres://u:p@db.example/aggios?sslmode=disable',
      'postgres://u:p@db.example/aggios?sslmode=prefer',
      'postgres://u:p@db.example/aggios?sslmode=no-verify',
      'postgres://u:p@db.example/aggios?sslmode=require',
      'postgres://u:p@db.example/aggios?sslmode=verify-full&uselibpqcompat=true',
      'postgres://u:p@localhost.evil.example/aggios',
      'postgres://u:p@127.0.0.1.evil.example/aggios',
      'postgres://u:p@localhost/aggios?host=db.example'
    ]
    for (const url of others) {
      t.strictSame(refusedNames({ ...production, DATABASE_URL: url }), ['DATABASE_URL'], url)
      t.strictSame(refusedNames({ ...production, DATABASE_OWNER_URL: url }), ['DATABASE_OWNER_URL'], `owner: ${url}`)
      const replica = refusedNames({ ...production, DATABASE_REPLICA_URL: url })
      t.strictSame(replica, ['DATABASE_REPLICA_URL'], `replica: ${url}`)
    }
    const good = [
      'postgres://u:p@db.example/aggios?sslmode=verify-full',
      'postgresql://u:p@localhost/aggios',
      'postgres://u:p@[::1]:5433/aggios',
      'postgres://localhost/aggios?host=/var/run/postgresql'
    ]
    for (const url of good) t.strictSame(refusals({ ...production, DATABASE_URL: url }), [], url)
  })
  t.test('development refuses none of these', async (t) => {
    const env = { DATABASE_URL: 'postgres://u:p@db.example/aggios', JWT_SECRET: 'x'.repeat(32), CORS_ORIGINS: '*' }
    t.strictSame(refusals(env), [])
  })
})

t.test('what contradicts itself is refused everywhere', async (t) => {
  for (const name of ['DATABASE_OWNER_URL', 'DATABASE_REPLICA_URL']) {
    t.strictSame(refusedNames({ JWT_SECRET: strongSecret, [name]: 'postgres://o@localhost/x' }), [name])
  }
  t.strictSame(refusedNames({ JWT_SECRET: `${strongSecret},${strongSecret}` }), ['JWT_SECRET'])
  t.strictSame(refusedNames({ JWT_SECRET: strongSecret, PASSWORD_PEPPER: 'a,b,a' }), ['PASSWORD_PEPPER'])
})

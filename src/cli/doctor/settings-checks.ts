import { statSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { isLoopback, unencryptedDatabases, unencryptedServices, weaknessesOf } from '../../config/production.ts'
import type { Check, Examination } from './examination.ts'
import { fingerprint } from './examination.ts'

/*
 * What the settings alone show. Values of secrets never become part of a report.
 */

export const settingsChecks: readonly Check[] = [
  { name: 'mode', run: checkMode },
  { name: 'weak secrets', run: checkWeakSecrets },
  { name: 'shared secrets', run: checkSharedSecrets },
  { name: 'readable secrets', run: checkEnvFile },
  { name: 'encryption', run: checkEncryption },
  { name: 'proxies', run: checkProxies },
  { name: 'limits', run: checkLimits },
  { name: 'mail settings', run: checkMailSettings },
  { name: 'processes', run: checkProcesses }
]

const isProduction = ({ config }: Examination) => config.nodeEnv === 'production'

function checkMode(exam: Examination): void {
  const { config, env } = exam
  if (!isProduction(exam) && !isLoopback(config.host)) {
    exam.found('development_mode', `NODE_ENV is ${config.nodeEnv}, and HOST is ${config.host}`)
  }
  if (isProduction(exam) && (env.DATABASE_OWNER_URL || env.DATABASE_OWNER_URL_FILE)) {
    exam.found('owner_credentials_served', 'DATABASE_OWNER_URL is set')
  }
}

/** Every secret of the settings, by the name of its variable. Of a URL it is the password. */
function secretsOf({ config }: Examination): [name: string, value: string][] {
  const passwordOf = (url: string | undefined) => (url ? decodeURIComponent(new URL(url).password) : '')
  const secrets: [string, string | undefined][] = [
    ...config.jwtSecret.map((value): [string, string] => ['JWT_SECRET', value]),
    ...config.passwordPepper.map((value): [string, string] => ['PASSWORD_PEPPER', value]),
    ['DATABASE_URL', passwordOf(config.databaseUrl)],
    ['DATABASE_OWNER_URL', passwordOf(config.databaseOwnerUrl)],
    ['REDIS_URL', passwordOf(config.redisUrl)],
    ['S3_SECRET_KEY', config.s3SecretKey]
  ]
  return secrets.flatMap(([name, value]) => (value ? [[name, value] as [string, string]] : []))
}

function checkWeakSecrets(exam: Examination): void {
  for (const [name, value] of secretsOf(exam)) {
    const [weakness] = weaknessesOf([value], exam.limits.secretBytes)
    if (weakness) exam.found('weak_secret', `${name}: ${weakness}`)
  }
}

function checkSharedSecrets(exam: Examination): void {
  const names = new Map<string, string>()
  for (const [name, value] of secretsOf(exam)) {
    const print = fingerprint(value)
    const other = names.get(print)
    if (other !== undefined && other !== name) exam.found('shared_secret', `${other} and ${name}`)
    names.set(print, name)
  }
}

function checkEnvFile(exam: Examination): void {
  const stats = statSync(join(exam.folder, '.env'), { throwIfNoEntry: false })
  if (stats && (stats.mode & 0o044) !== 0) {
    exam.found('secrets_readable', `.env has the mode ${(stats.mode & 0o777).toString(8)}`)
  }
}

/** In every mode; production does not start with such settings. */
function checkEncryption(exam: Examination): void {
  const { config } = exam
  const databases = { DATABASE_URL: config.databaseUrl, DATABASE_REPLICA_URL: config.databaseReplicaUrl }
  const urls = { ...config, apiUrl: isProduction(exam) ? config.apiUrl : undefined }
  for (const problem of [...unencryptedDatabases(databases), ...unencryptedServices(urls)]) {
    exam.found('plain_text_connection', problem.replace(' in production', ''))
  }
}

/** Networks that are larger than those of a content delivery network. */
const widest = { 4: 12, 6: 28 }

export function checkProxies(exam: Examination): void {
  const { trustProxy } = exam.config
  // in production a proxy ends TLS, because the server itself speaks plain HTTP
  if (isProduction(exam) && trustProxy.length === 0) exam.found('trust_proxy_missing', 'TRUST_PROXY is empty')
  for (const range of trustProxy) {
    const [address = '', prefix] = range.split('/')
    const family = address.includes(':') ? 6 : 4
    if (prefix !== undefined && Number(prefix) < widest[family])
      exam.found('trust_proxy_too_wide', `TRUST_PROXY: ${range}`)
  }
}

function checkLimits(exam: Examination): void {
  const { config } = exam
  if (isProduction(exam)) {
    const rates = {
      RATE_LIMIT: config.rateLimit.max,
      RATE_LIMIT_KEY: config.rateLimitKey.max,
      RATE_LIMIT_TENANT: config.rateLimitTenant.max,
      RATE_LIMIT_AUTH: config.rateLimitAuth.max,
      TENANTS_PER_DAY: config.tenantsPerDay,
      RATE_LIMIT_MAIL: config.rateLimitMail.max,
      RATE_LIMIT_MAIL_UNVERIFIED: config.rateLimitMailUnverified.max,
      RATE_LIMIT_MAIL_TO: config.rateLimitMailTo.max
    }
    const off = Object.keys(rates).filter((name) => rates[name as keyof typeof rates] === 0)
    if (off.length > 0) exam.found('rate_limits_off', `${off.join(', ')}: 0`)
  }
  if (config.sweep !== 'on') exam.found('sweep_off', `SWEEP=${config.sweep}`)
}

function checkMailSettings(exam: Examination): void {
  if (exam.config.smtpUrl !== undefined) return
  if (isProduction(exam)) exam.found('mail_not_sent', 'SMTP_URL is not set: mails wait in the outbox')
  else exam.skipped('mail settings', 'SMTP_URL is not set, and a development server writes mails to its log')
}

function checkProcesses(exam: Examination): void {
  const { webConcurrency, redisUrl } = exam.config
  const cores = availableParallelism()
  if (webConcurrency > 1 && redisUrl === undefined) {
    exam.found('redis_missing', `WEB_CONCURRENCY is ${webConcurrency}, and REDIS_URL is not set`)
  }
  if (webConcurrency > cores)
    exam.found('too_many_processes', `WEB_CONCURRENCY is ${webConcurrency}, and there are ${cores} cores`)
}

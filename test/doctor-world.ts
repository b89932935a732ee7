import { once } from 'node:events'
import { mkdtempSync, readFileSync } from 'node:fs'
import https from 'node:https'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import tls from 'node:tls'
import { SMTPServer } from 'smtp-server'
import type { Test } from 'tap'
import { examine, type Part, parts, type Report } from '../src/cli/doctor/doctor.ts'
import type { Limits, Options } from '../src/cli/doctor/examination.ts'
import { type Hole, knownHoles } from '../src/cli/doctor/known-holes.ts'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { type Cluster, startCluster } from './cluster.ts'
import { withClient } from './databases.ts'
import { temporaryFolder } from './harness.ts'
import { needsRedis, type RedisServer, startRedis } from './redis.ts'
import { refusal, type ScriptedS3, startScriptedS3 } from './scripted-s3.ts'
import { otherStrongSecret, strongSecret } from './tokens.ts'
import { makeCertificate } from './traefik.ts'

/*
 * A sound installation with settings of production, for the tests of the doctor: each part can be broken.
 */

export type World = {
  cluster: Cluster
  redis: RedisServer | undefined
  s3: ScriptedS3
  /** How the store and the public addresses behave. A test changes it, and puts it back. */
  behaviour: { open: boolean; known: boolean; aclStatus: number; server: string; page: string }
  sound: Environment
  /** A new empty folder. */
  folder(): string
  /** Runs a statement as the superuser. */
  admin(text: string, values?: unknown[]): Promise<Record<string, unknown>[]>
  look(change?: Change, only?: readonly Part[]): Promise<Report>
}

/** What is different from the sound installation. */
export type Change = Partial<Omit<Options, 'config' | 'env' | 'limits'>> & {
  env?: Environment
  limits?: Partial<Limits>
}

/** The embedded PostgreSQL is older than what is sound in production, and the disk is that of the machine of the tests. */
const holes: readonly Hole[] = knownHoles.filter(({ product }) => product !== 'PostgreSQL')
const limits: Partial<Limits> = {
  checkMs: 60_000,
  diskFullShare: 0,
  diskNearlyFullShare: 0,
  descriptors: 1,
  slowDatabaseMs: 5000,
  slowRedisMs: 5000,
  slowStoreMs: 5000
}

export async function createWorld(t: Test): Promise<World> {
  const home = temporaryFolder(t)
  const folder = () => mkdtempSync(join(home, 'folder-'))
  const redis = needsRedis.skip ? undefined : await startRedis(t)
  const cluster = await startCluster(t, { settings: ['archive_mode=on'] })
  const behaviour = { open: false, known: true, aclStatus: 403, server: 'MinIO', page: '{"status":"ok"}' }
  const s3 = await startScriptedS3(t)
  // like a real store: strangers are refused, and so is a question that the policy of the key does not allow
  s3.fail('', (call) => {
    const { request, reply } = call
    reply.setHeader('server', behaviour.server)
    if (!behaviour.known || (request.headers.authorization === undefined && !behaviour.open))
      return refusal(403, 'AccessDenied')(call)
    if (/[?&]acl=/.test(request.url ?? '')) return refusal(behaviour.aclStatus, 'AccessDenied')(call)
    return call.obey()
  })
  const site = await startSite(t, folder(), () => behaviour.page)
  const smtp = new SMTPServer({ authOptional: true, disabledCommands: ['STARTTLS'], logger: false })
  smtp.listen(0, '127.0.0.1')
  await once(smtp.server, 'listening')
  t.teardown(() => new Promise<void>((done) => smtp.close(() => done())))

  const sound: Environment = {
    NODE_ENV: 'production',
    JWT_SECRET: strongSecret,
    PASSWORD_PEPPER: otherStrongSecret,
    DATABASE_URL: cluster.url('aggios_app'),
    DATA_DIR: folder(),
    TRUST_PROXY: '172.28.0.0/24',
    ...s3.environment,
    S3_SECRET_KEY: 'th1s-0pens-th3-st0re-0f-the-tests',
    SMTP_URL: `smtp://127.0.0.1:${(smtp.server.address() as AddressInfo).port}`,
    APP_URL: site,
    API_URL: site,
    ...(redis && { REDIS_URL: redis.url })
  }
  const empty = folder()
  const admin: World['admin'] = (text, values) =>
    withClient(cluster.url('postgres'), async (client) => (await client.query(text, values)).rows)
  await admin("alter system set archive_command = 'true'")
  await admin('select pg_reload_conf()')

  function look(
    { env: changed = {}, limits: bounds, ...rest }: Change = {},
    only: readonly Part[] = parts
  ): Promise<Report> {
    const env = { ...sound, ...changed }
    const config = readConfig(env)
    const given = { config, env, databaseUrl: config.databaseUrl, folder: empty, holes, ...rest }
    return examine({ ...given, limits: { ...limits, ...bounds } }, { only })
  }
  return { cluster, redis, s3, behaviour, sound, folder, admin, look }
}

/** A page behind HTTPS, with a certificate of an authority that this process trusts from now on. */
async function startSite(t: Test, dir: string, page: () => string): Promise<string> {
  tls.setDefaultCACertificates([...tls.getCACertificates(), makeCertificate(dir, 'localhost')])
  const [key, cert] = ['server.key', 'server.crt'].map((name) => readFileSync(join(dir, name)))
  const server = https.createServer({ key, cert }, (_request, reply) => void reply.end(page()))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return `https://localhost:${(server.address() as AddressInfo).port}`
}

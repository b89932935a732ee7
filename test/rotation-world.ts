import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { join } from 'node:path'
import type { Test } from 'tap'
import { openFleet } from '../src/cli/rotate/fleet.ts'
import type { Rotation } from '../src/cli/rotate/rotation.ts'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { startCluster } from './cluster.ts'
import { type Server, startServer, temporaryFolder, testEnvironment } from './harness.ts'
import { createMinioAdmin, encrypt, type S3Server, s3Servers } from './object-stores.ts'
import { freePort } from './ports.ts'
import { needsRedis, type RedisServer, startRedis } from './redis.ts'
import { createAgency, type Load, startLoad } from './rotation-load.ts'
import { urlsOf } from './stand.ts'
import { strongSecret } from './tokens.ts'

/*
 * A server with two workers whose secrets are files, beside real parts of its own, and clients who use it all the time.
 */

const [minio] = s3Servers

export type RotationWorld = {
  server: Server
  load: Load
  env: Environment
  postgres: string
  redis: RedisServer | undefined
  store:
    | {
        s3: S3Server['s3']
        addKey(accessKey: string, secretKey: string): Promise<void>
        disable(accessKey: string): Promise<void>
      }
    | undefined
  provider: Awaited<ReturnType<typeof startProvider>>
  /** What the command `rotate` works with. */
  rotation(more?: Environment): Rotation
  /** The path of a file of a secret. */
  file(name: string): string
}

export async function startWorld(t: Test): Promise<RotationWorld> {
  const cluster = await startCluster(t)
  const redis = needsRedis.skip ? undefined : await startRedis(t)
  const store = minio.skip ? undefined : await minio.start(t)
  const provider = await startProvider(t)
  const database = urlsOf(cluster)
  const folder = join(temporaryFolder(t), 'secrets')
  mkdirSync(folder)
  const file = (name: string) => join(folder, name.toLowerCase())
  const secrets: Record<string, string | undefined> = {
    JWT_SECRET: strongSecret,
    PASSWORD_PEPPER: randomBytes(32).toString('base64url'),
    DATABASE_URL: database.app,
    REDIS_URL: redis?.url,
    S3_ACCESS_KEY: store?.environment.S3_ACCESS_KEY,
    S3_SECRET_KEY: store?.environment.S3_SECRET_KEY,
    GOOGLE_CLIENT_SECRET: provider.secrets[0]
  }
  const env: Environment = {
    ...testEnvironment({ ...database, serving: database.app }),
    ...(store && { S3_ENDPOINT: store.environment.S3_ENDPOINT, S3_BUCKET: store.environment.S3_BUCKET }),
    ...{ WEB_CONCURRENCY: '2', METRICS_PORT: String(await freePort()), DATABASE_POOL: '5', LOG_LEVEL: 'info' },
    ...{ GOOGLE_ISSUER: provider.url, GOOGLE_CLIENT_ID: 'the client', CORS_ORIGINS: 'http://localhost:3000' },
    ...{ TEST_DIR: folder, DATA_DIR: join(folder, 'data') }
  }
  for (const [name, value] of Object.entries(secrets)) {
    delete env[name]
    if (value === undefined) continue
    writeFileSync(file(name), `${value}\n`)
    env[`${name}_FILE`] = file(name)
  }
  const server = await startServer(t, env)
  const load = startLoad(server, await createAgency(server, 'acme'))
  t.teardown(load.stop)

  return {
    ...{ server, load, env, redis, provider, file },
    postgres: database.postgres,
    store: store && { s3: store.s3, ...createKeys(store) },
    rotation(more = {}) {
      const settings = { ...env, PORT: String(server.port), ...more }
      const config = readConfig(settings)
      return { config, env: settings, fleet: openFleet(config, { listener: [], timeout: 120 }), step: () => {} }
    }
  }
}

function createKeys({ s3 }: S3Server) {
  const administer = createMinioAdmin(s3.root)
  return {
    async addKey(accessKey: string, secretKey: string) {
      const user = encrypt(s3.root.secret_key, JSON.stringify({ secretKey, status: 'enabled' }))
      await administer(`add-user?accessKey=${accessKey}`, user)
      await administer(`set-user-or-group-policy?userOrGroup=${accessKey}&isGroup=false&policyName=aggios-backend`, '')
    },
    disable: (accessKey: string) => administer(`set-user-status?accessKey=${accessKey}&status=disabled`, '')
  }
}

/** A provider that knows its client by one of several secrets, and never gave anybody a code. */
async function startProvider(t: Test) {
  const secrets = [randomBytes(16).toString('hex')]
  const used: string[] = []
  const server = createServer((request, response) => {
    const url = `http://127.0.0.1:${(server.address() as { port: number }).port}`
    const reply = (value: object, status = 200) =>
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
    if (request.url?.endsWith('/openid-configuration')) {
      const endpoints = {
        authorization_endpoint: `${url}/authorize`,
        token_endpoint: `${url}/token`,
        jwks_uri: `${url}/jwks`
      }
      return reply({
        issuer: url,
        ...endpoints,
        response_types_supported: ['code'],
        subject_types_supported: ['public']
      })
    }
    const [, password = ''] = atob(request.headers.authorization?.replace('Basic ', '') ?? '').split(':')
    used.push(decodeURIComponent(password))
    return reply({ error: secrets.includes(decodeURIComponent(password)) ? 'invalid_grant' : 'invalid_client' }, 400)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => {
    server.closeAllConnections()
    server.close()
  })
  return { url: `http://127.0.0.1:${(server.address() as { port: number }).port}`, secrets, used }
}

/** Comes back from the provider with a code that it has not issued, so that the server sends its secret there. */
export async function comeBack({ port }: Server): Promise<number> {
  const api = `http://localhost:${port}/api/v1/auth/oauth/google`
  const code_challenge = createHash('sha256').update('a verifier').digest('base64url')
  const asked = new URLSearchParams({ redirect_to: 'http://localhost:3000/in', code_challenge })
  const started = await fetch(`${api}?${asked}`, { redirect: 'manual' })
  const state = new URL(started.headers.get('location') ?? 'none:').searchParams.get('state') ?? ''
  const cookie = started.headers
    .getSetCookie()
    .map((line) => line.split(';', 1)[0])
    .join('; ')
  const back = new URLSearchParams({ code: 'not-issued', state })
  return (await fetch(`${api}/callback?${back}`, { redirect: 'manual', headers: { cookie } })).status
}

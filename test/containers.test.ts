import { execFile, execFileSync, spawn } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { chownSync, cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync } from 'node:fs'
import { isBuiltin } from 'node:module'
import { tmpdir } from 'node:os'
import { dirname, join, relative, resolve } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { startEmbedded } from '../db/embedded.ts'
import { createS3Store } from '../src/files/store/s3.ts'
import {
  development,
  filledEnv,
  interpolate,
  minioFile,
  postgresFile,
  production,
  seaweedfs,
  secretFiles,
  secretOf,
  wafFile,
  withSecrets
} from './compose-files.ts'
import { withClient } from './databases.ts'
import { eventually, readText, root } from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'

// rehearsal: Dockerfiles and compose files, by their linters

/*
 * The containers of compose.yaml, as far as they can be tried without Docker: what the image of the product would contain,
 * SeaweedFS with its command, and PostgreSQL with its settings, certificates and access rules.
 */

const openssl = findProgram('openssl')
const psql = findProgram('psql')
const hadolint = findProgram('hadolint')
const weed = findProgram('weed')

t.test('hadolint finds nothing in the Dockerfiles', { skip: hadolint.skip }, async (t) => {
  const words = ['--no-color', 'Dockerfile', minioFile, postgresFile, wafFile]
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
    ...{ S3_BUCKET: 'other-files', S3_ACCESS_KEY: 'other-key', S3_SECRET_KEY_FILE: join(secretFiles, 's3_secret_key') }
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
  const key = { ...place, secret_key: secretOf('s3_secret_key') }
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
    const { dependencies, optionalDependencies } = JSON.parse(readText('package.json'))
    t.notMatch(readText('Dockerfile'), /omit[= ]optional/, 'the image has the optional packages too')
    const installed = { ...dependencies, ...optionalDependencies }
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
    for (const name of packages) t.ok(name in installed, name)
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

  // a reload must be enough for all of them; the paths are those of the container
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
    role: Parameters<typeof server.url>[0],
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
      const { result } = interpolate(withSecrets(production.services.backend), {
        ...filledEnv,
        BASE_DOMAIN: 'aggios.app'
      })
      const { DATABASE_URL_FILE: _, ...given } = result
      const env = {
        PATH: process.env.PATH,
        ...image.env,
        ...given,
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

  t.test('gets the passwords of the roles from the start script', { skip: psql.skip }, async (t) => {
    const { port, password } = new URL(server.url('postgres'))
    execFileSync(join(root, 'db/deploy/passwords.sh'), {
      stdio: 'pipe',
      env: {
        PATH: process.env.PATH,
        POSTGRES_DB: 'aggios',
        AGGIOS_APP_PASSWORD: "it's $new",
        DATABASE_OWNER_URL_FILE: join(secretFiles, 'database_owner_url'),
        AGGIOS_BACKUP_PASSWORD: "the backup's",
        // in the container it connects by the socket
        ...{ PGHOST: 'localhost', PGPORT: port, PGPASSWORD: password, PGSSLMODE: 'verify-full', PGSSLROOTCERT: ca }
      }
    })
    for (const [role, word] of [
      ['aggios_app', "it's $new"],
      ['aggios_owner', new URL(secretOf('database_owner_url')).password],
      ['aggios_backup', "the backup's"]
    ] as const) {
      await t.rejects(connect(role), { code: '28P01' }, `${role}: the one before no longer works`)
      const changed = new URL(url(role))
      changed.password = encodeURIComponent(word)
      t.equal(await withClient(changed.href, async (client) => (await client.query('select 1')).rowCount), 1)
    }
  })
})

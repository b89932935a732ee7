import { type ChildProcess, spawn } from 'node:child_process'
import { createCipheriv, pbkdf2Sync, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AwsClient } from 'aws4fetch'
import { Client } from 'minio'
import type { Test } from 'tap'
import type { Environment } from '../src/config/environment.ts'
import { createDiskStore } from '../src/files/store/disk.ts'
import type { ObjectStore } from '../src/files/store/object-store.ts'
import { createS3Store, type S3Settings } from '../src/files/store/s3.ts'
import { type Owner, root } from './harness.ts'
import { findProgram, type Part } from './parts.ts'
import { freePort } from './ports.ts'

/*
 * Starts the object stores that the product is tested with, set up as an operator would do it. An S3 server has a
 * bucket, and a key for the product with the rights of db/deploy/bucket-policy.json.
 */

export const bucket = 'aggios'

export type StartedStore = {
  /** The settings with which the product uses the store. */
  environment: Environment
  /** Opens the store as the product does. */
  open(): ObjectStore
  /**
   * If it is an S3 server: the settings with the product's key, those with the administrator's key, and the process.
   */
  s3?: { app: S3Settings; root: S3Settings; child: ChildProcess }
}

export type StoreKind = { name: string; skip: Part['skip']; start(t: Test): Promise<StartedStore> }

const minio = findProgram('minio', { compiled: true })
const weed = findProgram('weed')

export const objectStores: readonly StoreKind[] = [
  { name: 'disk', skip: false, start: startDisk },
  { name: 'MinIO', skip: minio.skip, start: startMinio },
  { name: 'SeaweedFS', skip: weed.skip, start: startSeaweed }
]

/** An S3 client with the administrator's key, which the product never has. */
export function asRoot({ endpoint, access_key, secret_key, region }: S3Settings): Client {
  const { hostname, port } = new URL(endpoint)
  return new Client({
    endPoint: hostname,
    port: Number(port),
    useSSL: false,
    region,
    accessKey: access_key,
    secretKey: secret_key,
    retryOptions: { disableRetry: true }
  })
}

async function startDisk(t: Test): Promise<StartedStore> {
  const folder = t.testdir()
  return { environment: { DATA_DIR: folder }, open: () => opened(t, createDiskStore(join(folder, 'files'))) }
}

const rootKey = { access_key: 'root-of-the-tests', secret_key: 'a secret of the tests, of root' }
const appKey = { access_key: 'aggios-app', secret_key: 'a secret of the tests, of the product' }

/** The S3 servers that are on this machine, each in a function that starts one. */
export const s3Servers = [
  { name: 'MinIO', skip: minio.skip, start: startMinio },
  { name: 'SeaweedFS', skip: weed.skip, start: startSeaweed }
] as const

export type S3Server = Awaited<ReturnType<typeof startMinio>>

async function startMinio(t: Owner, env: Record<string, string> = {}) {
  const port = await freePort()
  const folder = makeFolder()
  const args = ['server', '--quiet', '--address', `127.0.0.1:${port}`, '--console-address', '127.0.0.1:0', folder]
  const child = run(t, minio.path, args, folder, {
    MINIO_ROOT_USER: rootKey.access_key,
    MINIO_ROOT_PASSWORD: rootKey.secret_key,
    MINIO_BROWSER: 'off',
    MINIO_UPDATE: 'off',
    ...env
  })
  const store = await startedS3(t, child, port)
  const administer = createMinioAdmin(store.s3.root)
  const policy = readFileSync(join(root, 'db', 'deploy', 'bucket-policy.json'), 'utf8').replaceAll('BUCKET', bucket)
  await administer('add-canned-policy?name=aggios-backend', policy)
  const user = { secretKey: appKey.secret_key, status: 'enabled' }
  await administer(`add-user?accessKey=${appKey.access_key}`, encrypt(rootKey.secret_key, JSON.stringify(user)))
  const attached = `userOrGroup=${appKey.access_key}&isGroup=false&policyName=aggios-backend`
  await administer(`set-user-or-group-policy?${attached}`, '')
  return { ...store, folder }
}

async function startSeaweed(t: Owner) {
  const folder = makeFolder()
  const [port = 0, ...others] = await freePorts(8)
  const identity = (name: string, key: typeof rootKey, actions: string[]) => ({
    name,
    credentials: [{ accessKey: key.access_key, secretKey: key.secret_key }],
    actions
  })
  const settings = join(folder, 's3.json')
  const actions = ['Read', 'Write', 'List'].map((action) => `${action}:${bucket}`)
  const identities = [identity('root', rootKey, ['Admin']), identity('app', appKey, actions)]
  writeFileSync(settings, JSON.stringify({ identities }))
  const data = join(folder, 'data')
  mkdirSync(data)
  const ports = ['master.port', 'master.port.grpc', 'volume.port', 'volume.port.grpc', 'filer.port', 'filer.port.grpc']
  const args = [
    ...['server', `-dir=${data}`, '-ip=127.0.0.1', '-ip.bind=127.0.0.1', '-master.volumeSizeLimitMB=1024'],
    ...['-volume.max=40', '-master.telemetry=false', '-s3', `-s3.config=${settings}`, `-s3.port=${port}`],
    ...['-s3.port.iceberg=0', '-s3.port.lance=0', ...ports.map((name, index) => `-${name}=${others[index]}`)],
    `-s3.port.grpc=${others.at(-1)}`
  ]
  return { ...(await startedS3(t, run(t, weed.path, args, folder), port)), folder }
}

const makeFolder = () => mkdtempSync(join(tmpdir(), 'aggios-store-'))

/**
 * Starts a program, kills it when the test ends, and then removes its folder. The program may move files until it has
 * ended.
 */
function run(t: Owner, path: string, args: string[], folder: string, env: Record<string, string> = {}): ChildProcess {
  const child = spawn(path, args, { env: { ...process.env, ...env }, stdio: ['ignore', 'ignore', 'ignore'] })
  const exited = once(child, 'exit')
  t.teardown(async () => {
    child.kill('SIGKILL')
    // SIGKILL also ends a process that a test has paused
    await exited
    rmSync(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 })
  })
  return child
}

async function freePorts(count: number): Promise<number[]> {
  const ports = new Set<number>()
  while (ports.size < count) ports.add(await freePort())
  return [...ports]
}

/** Waits until the server has a bucket and stores an object. */
async function startedS3(t: Owner, child: ChildProcess, port: number) {
  const place = {
    endpoint: `http://127.0.0.1:${port}`,
    public_endpoint: `http://127.0.0.1:${port}`,
    region: 'us-east-1',
    bucket
  }
  const [app, rootOf] = [
    { ...place, ...appKey },
    { ...place, ...rootKey }
  ]
  const client = asRoot(rootOf)
  const deadline = Date.now() + 60_000
  for (;;) {
    try {
      if (!(await client.bucketExists(bucket))) await client.makeBucket(bucket)
      // the port may be open before the server can store objects
      await client.putObject(bucket, 'probe', 'probe')
      await client.removeObject(bucket, 'probe')
      break
    } catch (err) {
      if (child.exitCode !== null || Date.now() > deadline)
        throw new Error('the S3 server did not start', { cause: err })
      await sleep(100)
    }
  }
  const environment = {
    S3_ENDPOINT: app.endpoint,
    S3_BUCKET: bucket,
    S3_ACCESS_KEY: app.access_key,
    S3_SECRET_KEY: app.secret_key
  }
  return { environment, open: () => opened(t, createS3Store(app)), s3: { app, root: rootOf, child } }
}

function opened(t: Owner, store: ObjectStore): ObjectStore {
  t.teardown(() => store.close())
  return store
}

/** A client of MinIO's administration API. A refusal rejects with its text. */
export function createMinioAdmin({ endpoint, access_key, secret_key, region }: S3Settings) {
  const signer = new AwsClient({
    accessKeyId: access_key,
    secretAccessKey: secret_key,
    region,
    service: 's3',
    retries: 0
  })
  return async (path: string, body: string | Buffer): Promise<void> => {
    const reply = await signer.fetch(`${endpoint}/minio/admin/v3/${path}`, { method: 'PUT', body: body as string })
    if (!reply.ok) throw new Error(`MinIO: ${reply.status} ${await reply.text()}`)
  }
}

/**
 * Encrypts a body for MinIO's administration API. The key is derived from the sender's secret key (PBKDF2). The text is
 * one chunk of the DARE format, encrypted with AES-GCM.
 */
export function encrypt(secret: string, text: string): Buffer {
  const [salt, prefix] = [randomBytes(32), randomBytes(8)]
  const key = pbkdf2Sync(secret, salt, 8192, 32, 'sha256')
  const seal = (sequence: number, plain: Buffer, known: Buffer) => {
    const nonce = Buffer.concat([prefix, Buffer.alloc(4)])
    nonce.writeUInt32LE(sequence, 8)
    const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(known)
    return Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()])
  }
  const lastChunk = Buffer.concat([Buffer.from([0x80]), seal(0, Buffer.alloc(0), Buffer.alloc(0))])
  const pbkdf2AesGcm = Buffer.from([2])
  return Buffer.concat([salt, pbkdf2AesGcm, prefix, seal(1, Buffer.from(text), lastChunk)])
}

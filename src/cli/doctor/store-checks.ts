import { constants, existsSync } from 'node:fs'
import { access } from 'node:fs/promises'
import { join } from 'node:path'
import { AwsClient } from 'aws4fetch'
import { judgeStoreOwner, readStoreInstallation } from '../../../db/queries/store-fence.ts'
import { readBackupConfig } from '../../config/backups.ts'
import { completeUntil, openObjectBackup } from '../../files/object-backup.ts'
import { openBackup } from '../../files/store/configured-store.ts'
import { markKey } from '../../files/store/keys.ts'
import { StoreFailure } from '../../files/store/object-store.ts'
import { reportSkew } from './database-checks.ts'
import { CannotLook, type Check, type Examination, medianMs, reasonOf } from './examination.ts'
import { findHoles } from './known-holes.ts'

/*
 * The store of files: a bucket, or a folder of which only the fence is looked at.
 */

export const storeChecks: readonly Check[] = [
  { name: 'store', run: checkReachable },
  { name: 'bucket', run: checkStrangers },
  { name: 'key of the store', run: checkKey },
  { name: 'fence of the store', run: checkFence },
  { name: 'copy of the files', run: checkCopy, atStart: false }
]

const requestMs = 3000

/** Resolves to the store, when it answers. */
async function openWorking(exam: Examination) {
  const store = await exam.store()
  if (exam.config.s3Endpoint === undefined) {
    // the check of such a store would make its folder
    if (!existsSync(join(exam.config.dataDir, 'files'))) throw new CannotLook('no file was stored yet')
    return store
  }
  await store.check().catch(() => {
    throw new CannotLook('the store cannot be reached')
  })
  return store
}

async function checkReachable(exam: Examination): Promise<void> {
  const store = await exam.store()
  if (exam.config.s3Endpoint === undefined) return checkFolder(exam)
  try {
    const latency = await medianMs(() => store.check(), 3)
    exam.learned('store', { latency_ms: latency })
    if (latency > exam.limits.slowStoreMs) exam.found('store_slow', `a request takes ${latency} ms`)
  } catch (err) {
    const refused = err instanceof StoreFailure && err.kind === 'refused'
    exam.found(refused ? 'store_refuses' : 'store_unreachable', reasonOf(err))
  }
}

async function checkFolder(exam: Examination): Promise<void> {
  const folder = join(exam.config.dataDir, 'files')
  if (!existsSync(folder)) throw new CannotLook('no file was stored yet')
  await access(folder, constants.R_OK | constants.W_OK | constants.X_OK).catch((err) =>
    exam.found('store_refuses', reasonOf(err))
  )
}

const get = (url: string, init: RequestInit = {}) =>
  fetch(url, { ...init, redirect: 'manual', signal: AbortSignal.timeout(requestMs) })

/** Asks as a stranger: for the list of the bucket, and for one object that every store of the product has. */
async function checkStrangers(exam: Examination): Promise<void> {
  const { s3Endpoint, s3PublicEndpoint, s3Bucket } = exam.config
  if (s3Endpoint === undefined) return
  await openWorking(exam)
  for (const endpoint of new Set([s3Endpoint, s3PublicEndpoint ?? s3Endpoint])) {
    const before = exam.now()
    const listed = await get(`${endpoint}/${s3Bucket}?list-type=2&max-keys=1`)
    const after = exam.now()
    await listed.body?.cancel()
    const read = await get(`${endpoint}/${s3Bucket}/${markKey}`, { headers: { range: 'bytes=0-0' } })
    await read.body?.cancel()
    const open = [listed.ok && 'list the objects', read.ok && 'read an object'].filter(Boolean)
    if (open.length > 0) exam.found('bucket_public', `a stranger can ${open.join(' and ')} at ${endpoint}`)
    const date = Date.parse(listed.headers.get('date') ?? '')
    // the header has whole seconds
    if (endpoint === s3Endpoint && !Number.isNaN(date)) {
      reportSkew(exam, 'the store', date + 500 - (before + after) / 2, (after - before) / 2 + 500)
    }
    if (endpoint === s3Endpoint) checkVersion(exam, listed.headers.get('server') ?? '')
  }
}

function checkVersion(exam: Examination, server: string): void {
  const [, product, version] = /^(SeaweedFS|MinIO)\/?\s*(?:[\d.]*[GKM]B\s+)?(\S+)?/.exec(server) ?? []
  if (product === undefined || version === undefined) {
    exam.skipped('version of the store', `it does not say its version${server === '' ? '' : ` (${server})`}`)
    return
  }
  exam.learned('store', { version: `${product} ${version}` })
  const { open } = findHoles(exam.holes, product, version)
  if (open) exam.found('store_outdated', open)
}

/** Asks for something that db/deploy/bucket-policy.json does not allow, and that changes nothing. */
async function checkKey(exam: Examination): Promise<void> {
  const { s3Endpoint, s3Bucket, s3Region, s3AccessKey, s3SecretKey } = exam.config
  if (s3Endpoint === undefined) return
  await openWorking(exam)
  const signer = new AwsClient({
    accessKeyId: s3AccessKey as string,
    secretAccessKey: s3SecretKey as string,
    region: s3Region ?? 'us-east-1',
    service: 's3',
    retries: 0
  })
  const { status, body } = await get((await signer.sign(`${s3Endpoint}/${s3Bucket}?acl=`)) as never)
  await body?.cancel()
  if (status === 200) exam.found('store_key_too_powerful', 'the key may read who has access to the bucket')
  else if (status !== 403)
    throw new CannotLook(`the store answered ${status} to a question about the rights of the key`)
}

async function checkFence(exam: Examination): Promise<void> {
  const store = await openWorking(exam)
  const { verdict } = await judgeStoreOwner(exam.database().gate(), store)
  if (verdict !== 'ours') exam.found('store_fenced', verdict)
}

/** How old the copy of the objects in the bucket for backups is. */
async function checkCopy(exam: Examination): Promise<void> {
  if (exam.env.BACKUP_S3_ENDPOINT === undefined) {
    throw new CannotLook('BACKUP_S3_ENDPOINT is not set here, so a copy of the files cannot be seen')
  }
  const config = readBackupConfig(exam.env)
  const installation = await readStoreInstallation(await openWorking(exam))
  if (installation === undefined) throw new CannotLook('the store has no mark of an installation')
  const bucket = await openBackup(config)
  try {
    const until = await completeUntil(openObjectBackup(bucket, installation))
    if (until === undefined) return exam.found('files_not_copied', 'the files were never copied')
    const age = Math.round((exam.now() - until.getTime()) / 1000)
    exam.learned('store', { copied_seconds_ago: age })
    if (age > exam.limits.copySeconds)
      exam.found('files_not_copied', `the copy is complete until ${until.toISOString()}`)
  } catch (err) {
    exam.found('files_not_copied', reasonOf(err))
  } finally {
    bucket.close()
  }
}

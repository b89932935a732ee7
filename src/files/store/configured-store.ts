import { join } from 'node:path'
import type { BackupSettings } from '../../config/backups.ts'
import type { Config } from '../../config/config.ts'
import { createDiskStore } from './disk.ts'
import type { ObjectStore } from './object-store.ts'

/** The settings that say where the store is. */
export type StoreSettings = Pick<
  Config,
  'dataDir' | 's3Endpoint' | 's3PublicEndpoint' | 's3Region' | 's3Bucket' | 's3AccessKey' | 's3SecretKey'
>

/**
 * Opens the store of the settings: a bucket if S3_ENDPOINT is set, else the folder DATA_DIR/files. The client of S3 is
 * loaded only when it is needed, because it is a seventh of what a start loads.
 */
export async function openStore(config: StoreSettings): Promise<ObjectStore> {
  if (config.s3Endpoint === undefined) return createDiskStore(join(config.dataDir, 'files'))
  const { createS3Store } = await import('./s3.ts')
  return createS3Store({
    endpoint: config.s3Endpoint,
    public_endpoint: config.s3PublicEndpoint,
    region: config.s3Region ?? 'us-east-1',
    bucket: config.s3Bucket as string,
    access_key: config.s3AccessKey as string,
    secret_key: config.s3SecretKey as string
  })
}

/** Opens the bucket in which copies of the objects are kept. */
export async function openBackup(config: BackupSettings): Promise<ObjectStore> {
  const { createS3Store } = await import('./s3.ts')
  return createS3Store({
    endpoint: config.backupS3Endpoint,
    public_endpoint: undefined,
    region: config.backupS3Region,
    bucket: config.backupS3Bucket,
    access_key: config.backupS3AccessKey,
    secret_key: config.backupS3SecretKey
  })
}

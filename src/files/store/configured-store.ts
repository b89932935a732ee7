import { join } from 'node:path'
import type { Config } from '../../config/config.ts'
import { createDiskStore } from './disk.ts'
import type { ObjectStore } from './object-store.ts'
import { createS3Store } from './s3.ts'

/** Opens the store of the settings: a bucket if S3_ENDPOINT is set, else the folder DATA_DIR/files. */
export function openStore(config: Config): ObjectStore {
  if (config.s3Endpoint === undefined) return createDiskStore(join(config.dataDir, 'files'))
  return createS3Store({
    endpoint: config.s3Endpoint,
    public_endpoint: config.s3PublicEndpoint,
    region: config.s3Region ?? 'us-east-1',
    bucket: config.s3Bucket as string,
    access_key: config.s3AccessKey as string,
    secret_key: config.s3SecretKey as string
  })
}

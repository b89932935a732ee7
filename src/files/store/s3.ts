import http from 'node:http'
import https from 'node:https'
import { AwsClient } from 'aws4fetch'
import { Client, S3Error } from 'minio'
import {
  type DirectRequests,
  type ObjectStore,
  type StoredObject,
  StoreFailure,
  storeTimeoutMs,
  wrapStoredStream
} from './object-store.ts'

export type S3Key = { access_key: string; secret_key: string }

export type S3Settings = S3Key & {
  endpoint: string
  /** The store's URL for clients. Undefined when clients can't reach the store. */
  public_endpoint: string | undefined
  region: string
  bucket: string
}

const mebibyte = 1024 * 1024

/**
 * Stores objects in a bucket of MinIO or any other S3. It needs four permissions on the bucket's objects (Get, Put,
 * Delete, AbortMultipartUpload), and ListBucket for the sweep of unreferenced objects.
 */
export function createS3Store(settings: S3Settings): ObjectStore {
  const { bucket, region } = settings
  const endpoint = new URL(settings.endpoint)
  const secure = endpoint.protocol === 'https:'
  const library = secure ? https : http
  // the timeout closes idle connections before the store does, which could happen in the middle of a request
  const agent = new library.Agent({ keepAlive: true, timeout: storeTimeoutMs })
  const clientWith = ({ access_key, secret_key }: S3Key) =>
    new Client({
      endPoint: endpoint.hostname.replace(/^\[|\]$/g, ''),
      port: Number(endpoint.port) || (secure ? 443 : 80),
      useSSL: secure,
      // given, because the library would send a request to find it out
      region,
      accessKey: access_key,
      secretKey: secret_key,
      transportAgent: agent,
      transport: { request: withTimeouts(library.request as typeof http.request) },
      retryOptions: { disableRetry: true }
    })
  const directWith = (key: S3Key) =>
    settings.public_endpoint === undefined
      ? undefined
      : createDirectRequests({ ...settings, ...key }, settings.public_endpoint)
  let client = clientWith(settings)
  let direct = directWith(settings)

  async function call<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (err) {
      throw toFailure(err)
    }
  }
  /** Like `call`, but resolves to undefined when there is no such object or upload. */
  async function find<T>(work: () => Promise<T>): Promise<T | undefined> {
    return call(() =>
      work().catch((err) => {
        if (isMissing(err)) return undefined
        throw err
      })
    )
  }

  return {
    put: (key, content) => call(async () => void (await client.putObject(bucket, key, content, content.length))),
    get: (key, range) =>
      find(async () =>
        wrapStoredStream(
          range
            ? await client.getPartialObject(bucket, key, range.start, range.end - range.start + 1)
            : await client.getObject(bucket, key),
          toFailure
        )
      ),
    size: async (key) => (await find(() => client.statObject(bucket, key)))?.size,
    remove: async (key) => void (await find(() => client.removeObject(bucket, key))),
    move: (from, to) =>
      call(async () => {
        await client.copyObject(bucket, to, `/${bucket}/${from}`)
        await client.removeObject(bucket, from)
      }),
    list: (after, limit) =>
      call(async () => {
        const found: StoredObject[] = []
        // a server may return fewer entries than requested, so ask until there are enough or no more
        for (let more = true, from = after; more && found.length < limit; from = found.at(-1)?.key ?? '') {
          const { objects, isTruncated } = await client.listObjectsV2Query(
            bucket,
            '',
            '',
            '',
            limit - found.length,
            from
          )
          for (const { name, size = 0, lastModified } of objects) {
            if (name !== undefined) found.push({ key: name, size, modified_at: lastModified as Date })
          }
          more = isTruncated && objects.length > 0
        }
        return found
      }),

    minPartBytes: 5 * mebibyte,
    startParts: (key) => call(() => client.initiateNewMultipartUpload(bucket, key, {})),
    putPart: (key, id, number, _offset, content) =>
      call(async () => {
        // the library writes the id into the URL without escaping it
        const uploadID = encodeURIComponent(id)
        const config = { bucketName: bucket, objectName: key, uploadID, partNumber: number, headers: {} }
        return { number, tag: (await client.uploadPart(config, content)).etag }
      }),
    finishParts: (key, id, parts) =>
      call(async () => {
        const tags = parts.map(({ number, tag }) => ({ part: number, etag: tag }))
        await client.completeMultipartUpload(bucket, key, id, tags)
      }),
    dropParts: async (key, id) =>
      void (await find(() => client.abortMultipartUpload(bucket, key, encodeURIComponent(id)))),

    dropStaleParts: async () => {},
    get direct() {
      return direct
    },
    renew(key) {
      client = clientWith(key)
      direct = directWith(key)
    },
    check: () =>
      call(async () => {
        if (!(await client.bucketExists(bucket))) throw new StoreFailure('refused', new Error(`no bucket ${bucket}`))
      }),
    close: () => agent.destroy()
  }
}

/**
 * The timeout for joining parts or copying, which is slow for large objects. It is shorter than a client's idle
 * timeout.
 */
export const assemblyTimeoutMs = 50_000
/** Statuses of replies that the library leaves unread. An unread reply would keep its connection from being reused. */
const unreadStatuses = new Set([408, 429, 499, 500, 502, 503, 504, 520])

/**
 * Adds timeouts to the library's requests, which have none: a request is destroyed when the store is silent for too long,
 * also while it connects. TCP's own timeouts are much longer.
 */
function withTimeouts(request: typeof http.request): typeof http.request {
  return ((options: http.RequestOptions, callback: (reply: http.IncomingMessage) => void) => {
    const isSlow =
      (options.method === 'POST' && options.path?.includes('uploadId=')) ||
      'x-amz-copy-source' in (options.headers ?? {})
    const sent = request({ ...options, timeout: isSlow ? assemblyTimeoutMs : storeTimeoutMs }, callback)
    let reply: http.IncomingMessage | undefined
    sent.on('timeout', () => {
      // unread data: the reader is slow, not the store
      if (reply !== undefined && reply.readableLength > 0) sent.setTimeout(storeTimeoutMs)
      else sent.destroy(new Error('the store did not answer in time'))
    })
    sent.once('response', (begun) => {
      reply = begun
      sent.setTimeout(storeTimeoutMs)
      if (unreadStatuses.has(begun.statusCode ?? 0)) begun.resume()
    })
    return sent
  }) as typeof http.request
}

/** Signs by aws4fetch, because minio signs only the host of a PUT: not its length, type or checksum. */
function createDirectRequests(settings: S3Settings, endpoint: string): DirectRequests {
  const { access_key, secret_key, region, bucket } = settings
  const signer = new AwsClient({
    accessKeyId: access_key,
    secretAccessKey: secret_key,
    region,
    service: 's3',
    retries: 0
  })
  async function sign(
    method: 'GET' | 'PUT',
    key: string,
    seconds: number,
    query: object,
    headers: Record<string, string>
  ) {
    const url = new URL(`${endpoint.replace(/\/+$/, '')}/${bucket}/${key}`)
    for (const [name, value] of Object.entries({ 'X-Amz-Expires': String(seconds), ...query })) {
      url.searchParams.set(name, value)
    }
    const signed = await signer.sign(url.href, { method, headers, aws: { signQuery: true, allHeaders: true } })
    return { url: signed.url, method, headers }
  }
  return {
    put: (key, { size, sha256, content_type }, seconds) =>
      sign(
        'PUT',
        key,
        seconds,
        {},
        {
          'content-length': String(size),
          'content-type': content_type,
          'x-amz-checksum-sha256': sha256.toString('base64')
        }
      ),
    get: (key, { content_type, content_disposition }, seconds) =>
      sign(
        'GET',
        key,
        seconds,
        {
          'response-content-type': content_type,
          'response-content-disposition': content_disposition
        },
        {}
      )
  }
}

const missing = new Set(['NoSuchKey', 'NotFound', 'NoSuchUpload'])
const full = new Set(['XMinioStorageFull', 'QuotaExceeded', 'XMinioAdminBucketQuotaExceeded', 'InsufficientCapacity'])
const refused = new Set([
  'AccessDenied',
  'InvalidAccessKeyId',
  'SignatureDoesNotMatch',
  'RequestTimeTooSkewed',
  'NoSuchBucket',
  'AllAccessDisabled'
])

const codeOf = (err: unknown) =>
  err instanceof S3Error || err instanceof Error ? (err as { code?: string }).code : undefined
const isMissing = (err: unknown) => missing.has(codeOf(err) ?? '')

function toFailure(err: unknown): StoreFailure {
  if (err instanceof StoreFailure) return err
  const code = codeOf(err) ?? ''
  return new StoreFailure(full.has(code) ? 'full' : refused.has(code) ? 'refused' : 'away', err)
}

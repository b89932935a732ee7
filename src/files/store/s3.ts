import http from 'node:http'
import https from 'node:https'
import { AwsClient } from 'aws4fetch'
import { Client, S3Error } from 'minio'
import {
  type DirectRequests,
  type ObjectStore,
  passing,
  patienceMs,
  type StoredObject,
  StoreFailure
} from './object-store.ts'

export type S3Settings = {
  endpoint: string
  /** Where clients reach the same store; undefined: they don't. */
  public_endpoint: string | undefined
  region: string
  bucket: string
  access_key: string
  secret_key: string
}

const mebibyte = 1024 * 1024

/**
 * Objects in a bucket of MinIO or any S3. Asks for four actions on the bucket's objects (Get, Put, Delete,
 * AbortMultipartUpload) and, for the sweep of what nothing refers to, for ListBucket.
 */
export function createS3Store(settings: S3Settings): ObjectStore {
  const { bucket, region } = settings
  const endpoint = new URL(settings.endpoint)
  const secure = endpoint.protocol === 'https:'
  const library = secure ? https : http
  // a connection that nobody uses is closed before the store closes it under a request
  const agent = new library.Agent({ keepAlive: true, timeout: patienceMs })
  const client = new Client({
    endPoint: endpoint.hostname.replace(/^\[|\]$/g, ''),
    port: Number(endpoint.port) || (secure ? 443 : 80),
    useSSL: secure,
    // named, so that nobody has to ask for it
    region,
    accessKey: settings.access_key,
    secretKey: settings.secret_key,
    transportAgent: agent,
    transport: { request: impatient(library.request as typeof http.request) },
    retryOptions: { disableRetry: true }
  })

  async function call<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (err) {
      throw toFailure(err)
    }
  }
  /** What is not there is no failure. */
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
        passing(
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
        // a server may give fewer than it was asked for, and more when it is asked again
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
        const uploadID = escaped(id)
        const config = { bucketName: bucket, objectName: key, uploadID, partNumber: number, headers: {} }
        return { number, tag: (await client.uploadPart(config, content)).etag }
      }),
    finishParts: (key, id, parts) =>
      call(async () => {
        const tags = parts.map(({ number, tag }) => ({ part: number, etag: tag }))
        await client.completeMultipartUpload(bucket, key, id, tags)
      }),
    dropParts: async (key, id) => void (await find(() => client.abortMultipartUpload(bucket, key, escaped(id)))),

    dropForgotten: async () => {},
    direct:
      settings.public_endpoint === undefined ? undefined : createDirectRequests(settings, settings.public_endpoint),
    check: () =>
      call(async () => {
        if (!(await client.bucketExists(bucket))) throw new StoreFailure('refused', new Error(`no bucket ${bucket}`))
      }),
    close: () => agent.destroy()
  }
}

/** Putting a large object together takes its time, but less than a client's connection may be idle. */
export const assemblyPatienceMs = 50_000
/** Replies that the library throws away unread, and with them their connections. */
const unreadStatuses = new Set([408, 429, 499, 500, 502, 503, 504, 520])

/** A store that says nothing for too long is away, whatever TCP thinks of it, also while it is connected to. */
function impatient(request: typeof http.request): typeof http.request {
  return ((options: http.RequestOptions, callback: (reply: http.IncomingMessage) => void) => {
    const assembles =
      (options.method === 'POST' && options.path?.includes('uploadId=')) ||
      'x-amz-copy-source' in (options.headers ?? {})
    const sent = request({ ...options, timeout: assembles ? assemblyPatienceMs : patienceMs }, callback)
    let reply: http.IncomingMessage | undefined
    sent.on('timeout', () => {
      // it is the reader who pauses
      if (reply !== undefined && reply.readableLength > 0) sent.setTimeout(patienceMs)
      else sent.destroy(new Error('the store did not answer in time'))
    })
    sent.once('response', (begun) => {
      reply = begun
      sent.setTimeout(patienceMs)
      if (unreadStatuses.has(begun.statusCode ?? 0)) begun.resume()
    })
    return sent
  }) as typeof http.request
}

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

/** The store's ids of parts, where the library writes them into an address as they are. */
const escaped = encodeURIComponent

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

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type { FastifyRequest } from 'fastify'
import { v4 as randomUuid } from 'uuid'
import { readFile } from '../../db/files.ts'
import { conflict, notFound, payloadTooLarge, preconditionFailed, validationFailed } from '../../src/errors.ts'
import { cleanFileName } from '../../src/file-names.ts'
import { headBytes, requireFileType } from '../../src/file-types.ts'
import { fileKey } from '../../src/objects/keys.ts'
import { inParts } from '../../src/objects/writing.ts'
import { Bytes, NoContent } from '../schemas.ts'
import { finishArrived } from './arrived.ts'
import { advanceUpload, findWriter, insertUpload, readUpload, takeUpload, type UploadRow } from './queries.ts'
import { bodyOf, undo, withReservation } from './receiving.ts'
import { ContentType, FileParams, Purpose, Sha256 } from './schemas.ts'

/** An upload on which nothing has moved for this long is given up. */
const patienceSeconds = 86_400
const version = '1.0.0'
const text = Type.String()
const partBytes = 5 * 1024 * 1024

const Version = Type.Object({ 'tus-resumable': Type.Optional(Type.String({ examples: [version] })) })
const Creation = Type.Object({
  ...Version.properties,
  'upload-length': Type.String({ pattern: '^\\d{1,15}$', description: 'Bytes of the whole file', examples: ['1024'] }),
  'upload-metadata': Type.Optional(
    Type.String({
      maxLength: 4096,
      description: 'Keys with values in base64: `filename`, `filetype`, `purpose`, `sha256`',
      examples: ['filename Q29udHJhY3QucGRm']
    })
  )
})
const Offset = Type.Object({
  ...Version.properties,
  'upload-offset': Type.String({ pattern: '^\\d{1,15}$', description: 'Bytes that the server has', examples: ['0'] })
})

/**
 * Uploads that survive a lost connection: tus 1.0 with creation, expiration and termination, as problem documents where it fails.
 *
 * Whole parts go to the store, and what is too little for one into the row that counts the bytes, in one statement with the
 * count. So what the server says it has is what it has, whatever crashes.
 */
const resumable: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['files']
  const access = 'member'

  app.addHook('onSend', (_request, reply, _payload, done) => {
    reply.header('tus-resumable', version)
    done()
  })
  app.addHook('preHandler', (request, reply, done) => {
    const asked = request.headers['tus-resumable']
    if (request.method === 'OPTIONS' || asked === undefined || asked === version) return done()
    reply.header('tus-version', version)
    done(preconditionFailed({ detail: `this server speaks tus ${version}` }))
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/offset+octet-stream', (_request, payload, done) => done(null, payload))

  // what tus clients ask before anything else; no operation of the document
  app.options('', { config: { access: 'public' }, schema: { hide: true } }, async (_request, reply) => {
    reply
      .code(204)
      .header('tus-version', version)
      .header('tus-extension', 'creation,expiration,termination')
      .header('tus-max-size', app.config.maxFileSize)
  })

  app.post(
    '',
    {
      config: { access, throttled: 12, problems: ['file_too_large', 'quota_exceeded', 'precondition_failed'] },
      schema: {
        operationId: 'createResumableUpload',
        summary: 'Begin a resumable upload',
        description: 'tus 1.0. Room for the whole file is kept until the upload ends or nothing has moved for a day.',
        tags,
        headers: Creation,
        response: {
          201: Type.Null({
            description: 'Begun; `Location` says where it goes on',
            headers: { Location: text, 'Upload-Expires': text }
          })
        }
      }
    },
    async (request, reply) => {
      const facts = readMetadata(request.headers['upload-metadata'] ?? '')
      const size = Number(request.headers['upload-length'])
      const name = cleanFileName(facts.filename)
      const file = { name, content_type: facts.filetype ?? '', purpose: facts.purpose ?? null, size }
      const sha256 = facts.sha256 === undefined ? null : Buffer.from(facts.sha256, 'hex')
      const begin = async (id: string) => {
        await request.withTenant((trx) => insertUpload(trx, { id, sha256, store_id: null }))
        if (size === 0) await finishArrived(app, request, id, await requireUpload(request, id), async () => {})
        return id
      }
      const id = await withReservation(app, request, file, begin, patienceSeconds)
      reply
        .code(201)
        .header('location', `/api/v1/files/resumable/${id}/content`)
        .header('upload-expires', new Date(Date.now() + patienceSeconds * 1000).toUTCString())
    }
  )

  app.head(
    '/:id/content',
    {
      // of other routes the document does not mention HEAD
      config: { access, problems: ['not_found', 'precondition_failed'], swagger: { exposeHeadRoute: true } },
      schema: {
        operationId: 'getResumableUpload',
        summary: 'How much of an upload has arrived',
        description: 'tus 1.0. Of one that has become a file, all.',
        tags,
        params: FileParams,
        headers: Version,
        response: {
          200: Type.Null({
            description: 'In `Upload-Offset`',
            headers: { 'Upload-Offset': text, 'Upload-Length': text, 'Upload-Expires': text }
          })
        }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const { tenant_id, user_id } = request.user
      const [upload] = await request.tenantQuery(readUpload, { tenant_id, id })
      const [file] = upload ? [] : await request.tenantQuery(readFile, { tenant_id, id })
      const known = upload ?? file
      if (known?.created_by !== user_id) throw notFound()
      reply.header('upload-length', known.size).header('upload-offset', upload ? upload.received : known.size)
      if (upload) reply.header('upload-expires', upload.expires_at.toUTCString())
    }
  )

  app.patch(
    '/:id/content',
    {
      config: {
        access,
        upload: true,
        receives: { type: 'application/offset+octet-stream', schema: Bytes },
        problems: ['not_found', 'conflict', 'precondition_failed', 'validation_failed', 'storage_full']
      },
      schema: {
        operationId: 'continueResumableUpload',
        summary: 'Send the next bytes of an upload',
        description:
          'From `Upload-Offset` on, as `application/offset+octet-stream`. With the last byte the file is checked and there.',
        tags,
        params: FileParams,
        headers: Offset,
        response: {
          204: Type.Unsafe<void>({ ...NoContent, headers: { 'Upload-Offset': text, 'Upload-Expires': text } })
        }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      const upload = await requireUpload(request, id)
      const offset = Number(request.headers['upload-offset'])
      if (offset !== upload.received) throw conflict({ detail: `the server has ${upload.received} bytes` })
      if (Number(request.headers['content-length'] ?? 0) > upload.size - offset) {
        throw payloadTooLarge({ detail: `${upload.size} bytes were announced` })
      }
      const state = await app.withUploadPlace(request.user.tenant_id, async () => {
        const appended = await append(request, id, upload)
        if (appended.last) await conclude(request, id, { ...upload, ...appended }, appended.last)
        return appended
      })
      reply.header('upload-offset', state.last ? upload.size : state.received)
      if (!state.last) reply.header('upload-expires', state.expires_at.toUTCString())
      reply.code(204)
    }
  )

  app.delete(
    '/:id/content',
    {
      config: { access, problems: ['not_found', 'precondition_failed'] },
      schema: {
        operationId: 'cancelResumableUpload',
        summary: 'Give an upload up',
        description: 'What has arrived is removed, and the room that was kept is free.',
        tags,
        params: FileParams,
        headers: Version,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { id } = request.params
      await requireUpload(request, id)
      await undo(app, request, id)
      reply.code(204)
    }
  )

  /** An upload is its beginner's alone. */
  async function requireUpload(request: FastifyRequest, id: string): Promise<UploadRow> {
    const { tenant_id, user_id } = request.user
    const [upload] = await request.tenantQuery(readUpload, { tenant_id, id })
    if (upload?.created_by !== user_id) throw notFound()
    return upload
  }

  type State = Pick<UploadRow, 'received' | 'tags' | 'store_id' | 'expires_at'> & { last?: Buffer }

  /**
   * Keeps what arrives, also of a connection that breaks. The `last` bytes are handed back and not counted: they are once the file
   * is there, so that a client comes back to an upload that died at its end. Throws `conflict` when somebody else writes by now.
   */
  async function append(request: FastifyRequest, id: string, upload: UploadRow): Promise<State> {
    const { tenant_id } = request.user
    const key = fileKey(tenant_id, id)
    const writer = randomUuid()
    const [taken] = await request.tenantQuery(takeUpload, { tenant_id, id, writer, offset: upload.received })
    if (!taken) throw conflict({ detail: 'somebody else sends the same upload' })
    const state: State = { ...upload, tags: taken.tags, store_id: taken.store_id }
    let kept_id = taken.store_id

    async function keep(tail: Buffer): Promise<void> {
      const received = state.tags.length * partBytes + tail.length
      const [kept] = await request.tenantQuery(advanceUpload, {
        ...{ tenant_id, id, writer, received, tail },
        tags: state.tags,
        store_id: state.store_id,
        patience_seconds: patienceSeconds
      })
      if (!kept) {
        // nobody else knows of parts that were begun here
        if (state.store_id !== null && state.store_id !== kept_id) await app.objects.dropParts(key, state.store_id)
        throw conflict({ detail: 'somebody else sends the same upload' })
      }
      kept_id = state.store_id
      Object.assign(state, { received, expires_at: kept.expires_at })
    }

    const content = untilItBreaks(taken.tail, bodyOf(request), upload.size - upload.received)
    for await (const part of inParts(content, partBytes)) {
      if (state.tags.length === 0 && part.length >= headBytes) {
        const head = part.subarray(0, headBytes)
        await requireFileType(head, upload.name, upload.content_type).catch(async (err) => {
          // nothing that could follow makes it another kind
          await undo(app, request, id)
          throw err
        })
      }
      if (state.tags.length * partBytes + part.length === upload.size) {
        state.last = Buffer.from(part)
      } else if (part.length === partBytes) {
        // whoever has taken over may have written this part already
        const [mine] = await request.tenantQuery(findWriter, { tenant_id, id, writer })
        if (!mine) throw conflict({ detail: 'somebody else sends the same upload' })
        state.store_id ??= await app.objects.startParts(key)
        const at = state.tags.length * partBytes
        const { tag } = await app.objects.putPart(key, state.store_id, state.tags.length + 1, at, part)
        state.tags = [...state.tags, tag]
        await keep(Buffer.alloc(0))
      } else {
        await keep(part)
      }
    }
    return state
  }

  /** All bytes are here: the object is made of its parts and looked at. */
  async function conclude(request: FastifyRequest, id: string, upload: UploadRow, last: Buffer): Promise<void> {
    const key = fileKey(request.user.tenant_id, id)
    await finishArrived(app, request, id, upload, async () => {
      if (upload.store_id === null) return app.objects.put(key, last)
      const parts = upload.tags.map((tag, index) => ({ number: index + 1, tag }))
      const at = parts.length * partBytes
      parts.push(await app.objects.putPart(key, upload.store_id, parts.length + 1, at, last))
      await app.objects.finishParts(key, upload.store_id, parts)
    })
  }
}

/** What was kept before, and what comes; a connection that breaks ends it like any other end. */
async function* untilItBreaks(tail: Buffer, body: AsyncIterable<Buffer>, room: number): AsyncGenerator<Buffer> {
  if (tail.length > 0) yield tail
  let left = room
  try {
    for await (const chunk of body) {
      if (chunk.length > left) throw payloadTooLarge()
      left -= chunk.length
      yield chunk
    }
  } catch (err) {
    if ((err as { code?: string }).code !== 'ECONNRESET') throw err
  }
}

type Metadata = { filename?: string; filetype?: string; purpose?: string; sha256?: string }

const expectations = {
  filetype: 'must be a media type of at most 127 characters',
  purpose: `must match pattern "${Purpose.pattern}"`,
  sha256: `must match pattern "${Sha256.pattern}"`
}

/** `key base64,key base64`; keys that are not known are left alone, as tus says. */
function readMetadata(header: string): Metadata {
  const entries = header.split(',').flatMap((pair) => {
    const [key = '', value = ''] = pair.trim().split(' ')
    return ['filename', 'filetype', 'purpose', 'sha256'].includes(key)
      ? [[key, Buffer.from(value, 'base64').toString()]]
      : []
  })
  const facts = Object.fromEntries(entries) as Metadata
  for (const [key, schema] of [
    // clients that know no type send an empty one
    ['filetype', Type.Union([Type.Literal(''), ContentType])],
    ['purpose', Purpose],
    ['sha256', Sha256]
  ] as const) {
    if (facts[key] === undefined || Value.Check(schema, facts[key])) continue
    const message = `: ${key} ${expectations[key]}`
    throw validationFailed({
      detail: `headers/upload-metadata${message}`,
      errors: [{ path: '/headers/upload-metadata', message: message.slice(2) }]
    })
  }
  return facts
}

export default resumable

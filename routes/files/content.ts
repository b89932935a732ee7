import { Readable } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { FileRow } from '../../db/queries/files.ts'
import { linkSeconds } from '../../src/files/file-links.ts'
import { attachment } from '../../src/files/file-names.ts'
import { fileKey } from '../../src/files/store/keys.ts'
import { type ByteRange, parseRange } from '../../src/http/byte-ranges.ts'
import { matchesTag } from '../../src/http/etags.ts'
import { notFound, rangeNotSatisfiable, tenantMismatch } from '../../src/http/problems.ts'
import { Bytes, NotModified, ReadConditions } from '../schemas.ts'
import { requireFile, requireLinkedFile } from './file-lookup.ts'
import { FileLink, FileParams, LinkParams } from './schemas.ts'

const RangeConditions = Type.Object({
  ...ReadConditions.properties,
  range: Type.Optional(Type.String({ description: 'One range of bytes', examples: ['bytes=0-1023'] })),
  'if-range': Type.Optional(Type.String({ description: 'ETag of the version to which the range applies' }))
})
const cacheControl = 'private, no-cache'
const text = Type.String()
const bytes = (description: string, headers = {}) => ({
  description,
  headers: { ETag: text, 'Accept-Ranges': text, 'Content-Disposition': text, ...headers },
  content: { '*/*': { schema: Bytes } }
})
const responses = {
  200: bytes('The bytes'),
  206: bytes('The range that was asked for', { 'Content-Range': text }),
  304: NotModified
}

/** Downloads of files, with an access token or with a signed link. */
const content: FastifyPluginAsyncTypebox = async (app) => {
  const tags = ['files']
  const problems = ['not_found', 'range_not_satisfiable']
  const description = 'Always as an attachment. Supports `If-None-Match`, one `Range`, `If-Range` and HEAD.'

  app.get(
    '/:id/content',
    {
      config: { access: 'viewer', permission: 'files:read', problems },
      schema: {
        operationId: 'getFileContent',
        summary: 'The bytes of a file',
        description,
        tags,
        params: FileParams,
        headers: RangeConditions,
        response: responses
      }
    },
    async (request, reply) =>
      sendContent(request, reply, request.user.tenant_id, await requireFile(request, request.params.id))
  )

  app.get(
    '/:id/url',
    {
      config: { access: 'viewer', permission: 'files:read', problems: ['not_found'] },
      schema: {
        operationId: 'getFileUrl',
        summary: 'A link to the bytes',
        description: 'Valid for one file and five minutes, without a token: for players, viewers and downloads.',
        tags,
        params: FileParams,
        response: { 200: FileLink }
      }
    },
    async (request) => {
      const { tenant_id } = request.user
      const { id, name, content_type } = await requireFile(request, request.params.id)
      const expires_at = new Date(Date.now() + linkSeconds * 1000)
      const reply = { content_type, content_disposition: attachment(name) }
      const direct = await app.objects.direct?.get(fileKey(tenant_id, id), reply, linkSeconds)
      const token = app.fileLinks.issue('read', { tenant_id, id, expires_at })
      return {
        url: direct?.url ?? `${request.origin}/api/v1/files/links/${token}/content`,
        expires_at
      }
    }
  )

  app.get(
    '/links/:token/content',
    {
      config: { access: 'public', embedded: true, problems: [...problems, 'tenant_mismatch'] },
      schema: {
        operationId: 'getLinkedFileContent',
        summary: 'The bytes of a file, by a link',
        description,
        tags,
        params: LinkParams,
        headers: RangeConditions,
        response: responses
      }
    },
    async (request, reply) => {
      const link = app.fileLinks.verify('read', request.params.token)
      if (!link) throw notFound()
      if (request.tenant && request.tenant.id !== link.tenant_id) throw tenantMismatch()
      return sendContent(request, reply, link.tenant_id, await requireLinkedFile(request, link))
    }
  )

  async function sendContent(request: FastifyRequest, reply: FastifyReply, tenantId: string, file: FileRow) {
    const tag = `"${file.sha256}"`
    const known = request.headers['if-none-match']
    if (known !== undefined && matchesTag(known, tag)) {
      reply.code(304).header('etag', tag).header('cache-control', cacheControl)
      return
    }
    const range = rangeOf(request, file.size, tag)
    const isEmpty = request.method === 'HEAD' || file.size === 0
    const stream = isEmpty ? Readable.from([]) : await app.objects.get(fileKey(tenantId, file.id), range)
    // an operator finds rows without bytes by `npm run files -- compare`
    if (!stream) throw new Error(`the bytes of file ${file.id} are missing`)
    if (range) reply.code(206).header('content-range', `bytes ${range.start}-${range.end}/${file.size}`)
    reply
      .type(file.content_type)
      .header('content-length', range ? range.end - range.start + 1 : file.size)
      .header('etag', tag)
      .header('cache-control', cacheControl)
      .header('accept-ranges', 'bytes')
      .header('content-security-policy', "default-src 'none'; frame-ancestors 'none'; sandbox")
      .header('content-disposition', attachment(file.name))
    return stream as never
  }
}

/** The range that a request asks for; undefined for the whole file. Throws `range_not_satisfiable`. */
function rangeOf({ method, headers }: FastifyRequest, size: number, tag: string): ByteRange | undefined {
  const condition = headers['if-range']
  // If-Range holds one tag, compared strongly, or a date; replies here carry no date (RFC 9110, 13.1.5)
  const applies = condition === undefined || String(condition).trim() === tag
  // only GET has ranges (RFC 9110, 14.2)
  const range = applies && method === 'GET' ? parseRange(headers.range, size) : undefined
  if (range !== 'unsatisfiable') return range
  throw rangeNotSatisfiable({ headers: { 'content-range': `bytes */${size}` } })
}

export default content

import { Readable } from 'node:stream'
import multipart, { type MultipartFile } from '@fastify/multipart'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { v4 as randomUuid } from 'uuid'
import { queryIn, type TenantTransaction } from '../../db/gate/gate.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { readTenant } from '../../db/queries/tenants.ts'
import { readUser } from '../../db/queries/users.ts'
import { rejectOnAbort } from '../../src/abort-signals.ts'
import { readFormData } from '../../src/files/form-data.ts'
import { imageType, maxImageBytes, reencodeImage } from '../../src/files/images.ts'
import { imageKey } from '../../src/files/store/keys.ts'
import { matchesTag, tenantTag, userTag } from '../../src/http/etags.ts'
import { fileTooLarge, notFound, Problem, sessionRevoked } from '../../src/http/problems.ts'
import { Bytes, Id, NoContent, NotModified, presentTenant, ReadConditions, Tenant, User } from '../schemas.ts'
import { setAvatar, setLogo } from './queries.ts'

const ImageForm = Type.Object({ file: Bytes }, { additionalProperties: false, title: 'ImageForm' })
const upload = {
  upload: true,
  receives: {
    type: 'multipart/form-data',
    schema: ImageForm
  },
  problems: ['file_too_large', 'validation_failed', 'storage_full']
}
const ImageParams = Type.Object({ owner_id: Id, id: Id })

/** Avatars of people and logos of agencies. Images are small and re-encoded, and their public URLs can't be guessed. */
const images: FastifyPluginAsyncTypebox = async (app) => {
  await app.register(multipart)
  const description = 'A form with one part `file`. It is re-encoded: at most 512 pixels, WebP, without metadata.'

  app.put(
    '/users/me/avatar',
    {
      config: { access: 'user', reach: 'profile', ...upload },
      schema: {
        operationId: 'setAvatar',
        summary: 'Set the avatar',
        description,
        tags: ['me'],
        response: { 200: User }
      }
    },
    async (request, reply) => {
      const { user_id } = request.user
      const content = await receiveImage(request)
      const user = await replaceImage(app, request, user_id, content, async (trx, imageId) => {
        const previousId = await setAvatar(trx, user_id, imageId)
        await recordAudit(trx, { action: 'user.avatar_set', target_id: user_id })
        const [row] = await queryIn(trx, readUser, request.user)
        return { previousId, row }
      })
      if (!user) throw sessionRevoked()
      reply.header('etag', userTag(user)).header('cache-control', 'private, no-cache')
      return user
    }
  )

  app.delete(
    '/users/me/avatar',
    {
      config: { access: 'user', reach: 'profile' },
      schema: {
        operationId: 'deleteAvatar',
        summary: 'Remove the avatar',
        description: 'Its URL stops working.',
        tags: ['me'],
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { user_id } = request.user
      const imageId = await request.withTenant(async (trx) => {
        const previousId = await setAvatar(trx, user_id, null)
        if (previousId) await recordAudit(trx, { action: 'user.avatar_removed', target_id: user_id })
        return previousId
      })
      if (imageId) await removeImage(app, request, user_id, imageId)
      reply.code(204)
    }
  )

  app.put(
    '/tenant/logo',
    {
      config: { access: 'admin', permission: 'tenant:write', ...upload },
      schema: {
        operationId: 'setLogo',
        summary: 'Set the logo',
        description,
        tags: ['tenant'],
        response: { 200: Tenant }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const content = await receiveImage(request)
      const tenant = await replaceImage(app, request, tenant_id, content, async (trx, imageId) => {
        const previousId = await setLogo(trx, tenant_id, imageId)
        await recordAudit(trx, { action: 'tenant.logo_set', target_id: tenant_id })
        const [row] = await queryIn(trx, readTenant, request.user)
        return { previousId, row }
      })
      if (!tenant) throw notFound()
      reply.header('etag', tenantTag(tenant)).header('cache-control', 'private, no-cache')
      return presentTenant(tenant, await app.storageQuota(tenant_id))
    }
  )

  app.delete(
    '/tenant/logo',
    {
      config: { access: 'admin', permission: 'tenant:write' },
      schema: {
        operationId: 'deleteLogo',
        summary: 'Remove the logo',
        description: 'Its URL stops working.',
        tags: ['tenant'],
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const imageId = await request.withTenant(async (trx) => {
        const previousId = await setLogo(trx, tenant_id, null)
        if (previousId) await recordAudit(trx, { action: 'tenant.logo_removed', target_id: tenant_id })
        return previousId
      })
      if (imageId) await removeImage(app, request, tenant_id, imageId)
      reply.code(204)
    }
  )

  app.get(
    '/images/:owner_id/:id',
    {
      config: { access: 'public', embedded: true, problems: ['not_found'] },
      schema: {
        operationId: 'getImage',
        summary: 'An avatar or a logo',
        description:
          'The image at `avatar_url` or `logo_url`. It needs no token: anybody who knows the URL may fetch it, from any page.',
        tags: ['files'],
        params: ImageParams,
        headers: ReadConditions,
        response: {
          200: { description: 'The image', content: { [imageType]: { schema: Bytes } } },
          304: NotModified
        }
      }
    },
    async (request, reply) => {
      const { owner_id, id } = request.params
      const tag = `"${id}"`
      const key = imageKey(owner_id, id)
      const size = await app.objects.size(key)
      if (size === undefined) throw notFound()
      reply
        .header('etag', tag)
        // an image never changes: a new image has a new URL
        .header('cache-control', 'private, max-age=86400, immutable')
        .header('cross-origin-resource-policy', 'cross-origin')
      const known = request.headers['if-none-match']
      if (known !== undefined && matchesTag(known, tag)) {
        reply.code(304)
        return
      }
      const stream = request.method === 'HEAD' ? Readable.from([]) : await app.objects.get(key)
      if (!stream) throw notFound()
      reply.type(imageType).header('content-length', size)
      return stream as never
    }
  )

  /** Reads the image of a form and re-encodes it. */
  async function receiveImage(request: FastifyRequest): Promise<Buffer> {
    const { user } = request
    // the upload slot is held until the image is re-encoded, so that memory holds at most one image per slot
    return app.withUploadSlot(request, user, async () => {
      const content = await rejectOnAbort(request.uploadSignal, readImage(request))
      return reencodeImage(content, (image) => app.decoders.decode(image, user.tenant_id))
    })
  }
}

async function readImage(request: FastifyRequest): Promise<Buffer> {
  const next = request.readForm(ImageForm, maxImageBytes + 1)
  let content: Buffer = Buffer.alloc(0)
  for (let part = await next(); part; part = await next()) {
    const file = part as MultipartFile
    content = await readFormData(() => file.toBuffer())
    if (content.length > maxImageBytes)
      throw fileTooLarge({ detail: `an image may have at most ${maxImageBytes} bytes` })
  }
  return content
}

/**
 * Stores a new image, writes its id in the transaction `work`, and removes the previous image. After a crash in
 * between, the sweep removes the image that no row refers to.
 */
async function replaceImage<Row>(
  app: FastifyInstance,
  request: FastifyRequest,
  ownerId: string,
  content: Buffer,
  work: (trx: TenantTransaction, id: string) => Promise<{ previousId: string | null | undefined; row: Row | undefined }>
): Promise<Row | undefined> {
  const id = randomUuid()
  await app.objects.put(imageKey(ownerId, id), content)
  const { previousId, row } = await request.withTenant((trx) => work(trx, id))
  if (previousId) await removeImage(app, request, ownerId, previousId)
  return row
}

/** Removes an image that no row refers to any more. On failure the sweep removes it later. */
async function removeImage(app: FastifyInstance, request: FastifyRequest, ownerId: string, id: string): Promise<void> {
  try {
    // a copy of this database must not remove images from a store that belongs to the original
    if (await app.storeFence.mayRemove()) await app.objects.remove(imageKey(ownerId, id))
  } catch (err) {
    if (err instanceof Problem) throw err
    request.log.warn({ err }, 'an image is left to the sweep')
  }
}

export default images

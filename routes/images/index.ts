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
import { imageType, maxImageBytes, reencodeImage } from '../../src/files/images.ts'
import { imageKey, imagePath } from '../../src/files/store/keys.ts'
import { matchesTag } from '../../src/http/etags.ts'
import { readable } from '../../src/http/forms.ts'
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
const Owner = Type.Object({ owner_id: Id, id: Id })

/** Avatars of people and logos of agencies: small, re-encoded, and fetched by addresses that can't be guessed. */
const images: FastifyPluginAsyncTypebox = async (app) => {
  await app.register(multipart)
  const description = 'A form with one part `file`. It is re-encoded: at most 512 pixels, WebP, without metadata.'

  app.put(
    '/users/me/avatar',
    {
      config: { access: 'user', ...upload },
      schema: {
        operationId: 'setAvatar',
        summary: 'Set the avatar',
        description,
        tags: ['me'],
        response: { 200: User }
      }
    },
    async (request) => {
      const { user_id } = request.user
      const content = await receiveImage(request)
      const user = await replace(app, request, user_id, content, async (trx, url) => {
        const before = await setAvatar(trx, user_id, url)
        await recordAudit(trx, { action: 'user.avatar_set', target_id: user_id })
        const [row] = await queryIn(trx, readUser, request.user)
        return { before, row }
      })
      if (!user) throw sessionRevoked()
      return user
    }
  )

  app.delete(
    '/users/me/avatar',
    {
      config: { access: 'user' },
      schema: {
        operationId: 'deleteAvatar',
        summary: 'Remove the avatar',
        description: 'Its address is good for nothing then.',
        tags: ['me'],
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { user_id } = request.user
      const before = await request.withTenant(async (trx) => {
        const url = await setAvatar(trx, user_id, null)
        if (url) await recordAudit(trx, { action: 'user.avatar_removed', target_id: user_id })
        return url
      })
      await removeImage(app, request, before)
      reply.code(204)
    }
  )

  app.put(
    '/tenant/logo',
    {
      config: { access: 'admin', ...upload },
      schema: {
        operationId: 'setLogo',
        summary: 'Set the logo',
        description,
        tags: ['tenant'],
        response: { 200: Tenant }
      }
    },
    async (request) => {
      const { tenant_id } = request.user
      const content = await receiveImage(request)
      const tenant = await replace(app, request, tenant_id, content, async (trx, url) => {
        const before = await setLogo(trx, tenant_id, url)
        await recordAudit(trx, { action: 'tenant.logo_set', target_id: tenant_id })
        const [row] = await queryIn(trx, readTenant, request.user)
        return { before, row }
      })
      if (!tenant) throw notFound()
      return presentTenant(tenant, await app.storageQuota(tenant_id))
    }
  )

  app.delete(
    '/tenant/logo',
    {
      config: { access: 'admin' },
      schema: {
        operationId: 'deleteLogo',
        summary: 'Remove the logo',
        description: 'Its address is good for nothing then.',
        tags: ['tenant'],
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { tenant_id } = request.user
      const before = await request.withTenant(async (trx) => {
        const url = await setLogo(trx, tenant_id, null)
        if (url) await recordAudit(trx, { action: 'tenant.logo_removed', target_id: tenant_id })
        return url
      })
      await removeImage(app, request, before)
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
          'What `avatar_url` and `logo_url` name. Whoever was shown the address may fetch it, from any page.',
        tags: ['files'],
        params: Owner,
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
        // what an address names never changes
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

  /** The one image of a form, re-encoded. */
  async function receiveImage(request: FastifyRequest): Promise<Buffer> {
    const { user } = request
    // the place is kept until the bytes are no longer needed, so that no more of them than places are held
    return app.withUploadPlace(request, user, async () => {
      const content = await rejectOnAbort(request.uploadEnd, readImage(request))
      return reencodeImage(content, (image) => app.decoders.decode(image, user.tenant_id))
    })
  }
}

async function readImage(request: FastifyRequest): Promise<Buffer> {
  const next = request.readForm(ImageForm, maxImageBytes + 1)
  let content: Buffer = Buffer.alloc(0)
  for (let part = await next(); part; part = await next()) {
    const file = part as MultipartFile
    content = await readable(() => file.toBuffer())
    if (content.length > maxImageBytes)
      throw fileTooLarge({ detail: `an image may have at most ${maxImageBytes} bytes` })
  }
  return content
}

/**
 * Stores the new image, lets `work` refer to it, and removes the one before. A crash in between leaves an image that nothing refers
 * to, which the sweep removes.
 */
async function replace<Row>(
  app: FastifyInstance,
  request: FastifyRequest,
  ownerId: string,
  content: Buffer,
  work: (trx: TenantTransaction, url: string) => Promise<{ before: string | null | undefined; row: Row | undefined }>
): Promise<Row | undefined> {
  const id = randomUuid()
  await app.objects.put(imageKey(ownerId, id), content)
  const { before, row } = await request.withTenant((trx) => work(trx, imagePath(ownerId, id)))
  await removeImage(app, request, before)
  return row
}

/** An image that can't be removed now is removed by the sweep, since nothing refers to it any more. */
async function removeImage(
  app: FastifyInstance,
  request: FastifyRequest,
  url: string | null | undefined
): Promise<void> {
  const [ownerId, id] = url?.split('/').slice(-2) ?? []
  if (ownerId === undefined || id === undefined) return
  try {
    // a copy of this database may share the store with the one that the image belongs to
    if (await app.storeFence.mayRemove()) await app.objects.remove(imageKey(ownerId, id))
  } catch (err) {
    if (err instanceof Problem) throw err
    request.log.warn({ err }, 'an image is left to the sweep')
  }
}

export default images

import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyRequest } from 'fastify'
import { queryIn } from '../../db/gate/gate.ts'
import { queueNotice } from '../../db/queries/accounts/mails.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { endMySessions, mySessionsPage, myTenantsPage } from '../../db/queries/directory.ts'
import { findSessionProvider } from '../../db/queries/sign-in/identities.ts'
import { readTenant } from '../../db/queries/tenants.ts'
import { changePassword, endUserSessions, readUser } from '../../db/queries/users.ts'
import { requireAcceptablePassword } from '../../src/auth/passwords.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { matchesTag, userTag } from '../../src/http/etags.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { invalidCredentials, notFound, preconditionFailed, sessionRevoked } from '../../src/http/problems.ts'
import { maxUuid } from '../../src/uuids.ts'
import { NoContent, NotModified, PageQuery, ReadConditions, User, WriteConditions } from '../schemas.ts'
import email from './email.ts'
import { endAccount } from './ending.ts'
import { lockUser, renameUser } from './queries.ts'
import { Confirmation, MyTenantPage, PasswordChange, SessionId, SessionPage, UserPatch } from './schemas.ts'

/** The signed-in person: profile, password, sessions and agencies. */
const users: FastifyPluginAsyncTypebox = async (app) => {
  const access = 'user'
  const tags = ['me']
  const { passwordMinLength, refreshTokenTtl } = app.config
  const token_seconds = revocationSeconds(app.config)
  app.register(email)

  app.get(
    '/me',
    {
      config: { access },
      schema: {
        operationId: 'getMe',
        summary: 'The signed-in person',
        description:
          'With the role in the agency of the token. `If-None-Match` saves the body. May miss changes of the last second by another process, but not one whose ETag is sent as `If-None-Match`; `Cache-Control: no-cache` gets the newest.',
        tags,
        headers: ReadConditions,
        response: { 200: User, 304: NotModified }
      }
    },
    async (request, reply) => {
      const [user] = await request.tenantQuery(readUser, request.user)
      if (!user) throw sessionRevoked()
      const tag = userTag(user)
      reply.header('etag', tag).header('cache-control', 'private, no-cache')
      const known = request.headers['if-none-match']
      if (known !== undefined && matchesTag(known, tag)) {
        reply.code(304)
        return
      }
      return user
    }
  )

  app.patch(
    '/me',
    {
      config: { access, reach: 'profile', problems: ['precondition_failed'] },
      schema: {
        operationId: 'updateMe',
        summary: 'Change the signed-in person',
        description:
          'JSON merge patch. `If-Match` refuses the change when the person has changed since they were read.',
        tags,
        headers: WriteConditions,
        body: UserPatch,
        response: { 200: User }
      }
    },
    async (request, reply) => {
      const { name } = request.body
      const condition = request.headers['if-match']
      const outcome = await request.withTenant(async (trx) => {
        const before = await lockUser(trx, request.user)
        if (!before) return 'gone'
        if (condition !== undefined && !matchesTag(condition, userTag(before))) return 'changed'
        if (name !== undefined && name !== before.name) {
          await renameUser(trx, request.user.user_id, name)
          await recordAudit(trx, {
            action: 'user.updated',
            target_id: request.user.user_id,
            detail: { before: { name: before.name }, after: { name } }
          })
        }
        // inside the transaction, so that the reply and its ETag show this change and not a later one
        const [user] = await queryIn(trx, readUser, request.user)
        return user ?? 'gone'
      })
      if (outcome === 'gone') throw sessionRevoked()
      if (outcome === 'changed') throw preconditionFailed()
      reply.header('etag', userTag(outcome)).header('cache-control', 'private, no-cache')
      return outcome
    }
  )

  app.delete(
    '/me',
    {
      config: {
        access,
        reach: 'profile',
        problems: [
          ...['invalid_credentials', 'last_owner', 'last_break_glass_owner', 'rate_limited'],
          'reauthentication_required'
        ]
      },
      schema: {
        operationId: 'deleteMe',
        summary: 'End the signed-in identity everywhere',
        description:
          'Ends all sessions and memberships, in all agencies. An agency keeps at least one owner. Who has no password sets one first, by `POST /api/v1/auth/password/forgot`. Only somebody whom nothing but the own provider of their single agency lets in sends no `password`: they need a sign-in there within the last five minutes.',
        tags,
        body: Confirmation,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await endAccount(app, request, reply)
      await app.revocations.readNow()
      reply.code(204)
    }
  )

  app.post(
    '/me/password',
    {
      config: { access, reach: 'person', problems: ['invalid_credentials', 'rate_limited'] },
      schema: {
        operationId: 'changePassword',
        summary: 'Change the password',
        description: 'Ends every other session, in every agency.',
        tags,
        body: PasswordChange,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { current_password, new_password } = request.body
      const { user_id, sid } = request.user
      const checked = await app.credentials.requirePassword(request, reply, current_password)
      const path = '/body/new_password'
      const own = [checked.email, ...(await namesOf(request))]
      requireAcceptablePassword(new_password, path, passwordMinLength, own)
      if (new_password === current_password) {
        throw invalidMembers([{ path, message: 'must differ from the current one' }])
      }
      await app.refuseBreached(new_password, path)
      const hash = await app.passwords.hash(new_password, request.fairnessKey)
      const changed = await request.withTenant(async (trx) => {
        if (!(await changePassword(trx, user_id, checked.password_version, hash))) return false
        await endUserSessions(trx, sid, token_seconds)
        await queueNotice(trx, 'password_changed')
        await recordAudit(trx, { action: 'user.password_changed', target_id: user_id, session_id: sid })
        return true
      })
      if (!changed) throw invalidCredentials()
      await app.revocations.readNow()
      app.mail.wake()
      reply.code(204)
    }
  )

  app.get(
    '/me/sessions',
    {
      config: { access, problems: ['invalid_cursor'] },
      schema: {
        operationId: 'listMySessions',
        summary: 'Where this person is signed in, in all agencies',
        description: 'Open sessions only, the newest first.',
        tags,
        querystring: PageQuery,
        response: { 200: SessionPage }
      }
    },
    async (request, reply) => {
      const { limit = 25, cursor } = request.query
      const scope = `sessions ${request.user.user_id}`
      const [after_id = maxUuid] = app.cursors.require(scope, cursor)
      const rows = await request.tenantQuery(mySessionsPage, {
        session_id: request.user.sid,
        idle_seconds: refreshTokenTtl,
        after_id,
        limit: limit + 1
      })
      reply.header('cache-control', 'private, no-cache')
      const sessions = rows.map((row) => ({ ...row, current: row.id === request.user.sid }))
      return app.cursors.page(scope, sessions, limit, ({ id }) => [id])
    }
  )

  app.delete(
    '/me/sessions',
    {
      config: { access, reach: 'person' },
      schema: {
        operationId: 'endMyOtherSessions',
        summary: 'Sign out everywhere else',
        description: 'Ends every session but this one. Their access tokens become invalid within a second.',
        tags,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      await request.tenantQuery(endMySessions, { one: null, keep: request.user.sid, token_seconds })
      await app.revocations.readNow()
      reply.code(204)
    }
  )

  app.delete(
    '/me/sessions/:id',
    {
      config: { access, problems: ['not_found'] },
      schema: {
        operationId: 'endMySession',
        summary: 'Sign out on one device',
        description: 'Ends the session, in any agency. Its access tokens become invalid within a second.',
        tags,
        params: SessionId,
        response: { 204: NoContent }
      }
    },
    async (request, reply) => {
      const { tenant_id, sid } = request.user
      const values = { one: request.params.id, keep: null, token_seconds }
      const ended = await request.withTenant(async (trx) => {
        const [session] = await queryIn(trx, findSessionProvider, { tenant_id, session_id: sid })
        // a session through the agency's own provider ends sessions in this agency only
        const reached = { tenant_id, session_id: values.one }
        if (session?.provider_id && (await queryIn(trx, findSessionProvider, reached)).length === 0) return 0
        const [result] = await queryIn(trx, endMySessions, values)
        return result?.ended ?? 0
      })
      if (ended === 0) throw notFound()
      await app.revocations.readNow()
      reply.code(204)
    }
  )

  app.get(
    '/me/tenants',
    {
      config: { access, problems: ['invalid_cursor'] },
      schema: {
        operationId: 'listMyTenants',
        summary: 'The agencies of this person',
        description: 'Ordered by slug. `POST /api/v1/auth/switch` gives tokens for another one.',
        tags,
        querystring: PageQuery,
        response: { 200: MyTenantPage }
      }
    },
    async (request, reply) => {
      const { limit = 25, cursor } = request.query
      const scope = `tenants ${request.user.user_id}`
      const [after_slug = ''] = app.cursors.require(scope, cursor)
      const rows = await request.tenantQuery(myTenantsPage, {
        session_id: request.user.sid,
        after_slug,
        limit: limit + 1
      })
      reply.header('cache-control', 'private, no-cache')
      return app.cursors.page(scope, rows, limit, ({ slug }) => [slug])
    }
  )
}

/** The names that are refused as a password: the person's and the agency's. */
async function namesOf(request: FastifyRequest): Promise<string[]> {
  const [[user], [tenant]] = await Promise.all([
    request.tenantQuery(readUser, request.user),
    request.tenantQuery(readTenant, request.user)
  ])
  return [user?.name, tenant?.name].filter((name) => name !== undefined)
}

export default users

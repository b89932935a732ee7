import type pg from 'pg'
import { v7 as uuidv7 } from 'uuid'
import { createSecret, digestOf, formatKey } from '../src/auth/api-keys/key-format.ts'
import {
  type KeyRole,
  keyRoles,
  type Permission,
  permissions,
  permissionTable
} from '../src/auth/api-keys/permissions.ts'
import { allows, roleTable } from '../src/auth/roles.ts'
import type { Policy } from './authz-calls.ts'
import { attemptOf, bearerOf, Cases } from './isolation-cases.ts'
import type { Operation, Person, Side, World, WrongToken } from './isolation-world.ts'

/*
 * API keys as actors of the isolation matrix.
 */

type KeyFacts = { role: KeyRole; permissions: readonly Permission[]; cidrs?: string[]; expired?: boolean }

/**
 * Plants a key of the agency, also one that its role does not allow: the matrix shows that role and permissions must both
 * allow a call. It can call in the place of a person.
 */
export async function plantKey(
  sql: pg.Client,
  side: Pick<Side, 'id' | 'canary' | 'people'>,
  { role, permissions, cidrs = [], expired = false }: KeyFacts
): Promise<Person> {
  const [id, sid, secret] = [uuidv7(), uuidv7(), createSecret()]
  await sql.query(
    `insert into api_keys (tenant_id, id, name, role, permissions, cidrs, secret_hash, sid, created_by, expires_at)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9, case when $10 then now() - interval '1 second' end)`,
    [side.id, id, `${side.canary} key`, role, permissions, cidrs, digestOf(secret), sid, side.people.owner.id, expired]
  )
  return { id, email: '', role, sid, token: formatKey({ tenant_id: side.id, id, secret }), refresh_token: '' }
}

/** Keys that no operation may take: mistyped, invented, and ended. */
export async function makeWrongKeys({ sql, a }: World): Promise<WrongToken[]> {
  const { id, token } = await plantKey(sql, a, { role: 'admin', permissions })
  await sql.query('delete from api_keys where id = $1', [id])
  const other = await plantKey(sql, a, { role: 'admin', permissions })
  const invented = formatKey({ tenant_id: a.id, id: other.id, secret: createSecret() })
  const mistyped = other.token.slice(0, -1) + (other.token.endsWith('0') ? '1' : '0')
  const wrong: [id: string, title: string, token: string][] = [
    ['K1', 'a mistyped API key', mistyped],
    ['K2', 'an invented secret of an API key', invented],
    ['K3', 'an API key that has ended', token]
  ]
  return wrong.map(([id, title, token]) => {
    return { id, title, authorization: `Bearer ${token}`, status: 401, code: 'invalid_token' }
  })
}

/** The permission that each operation needs of a key. No key may call the others that are not public. */
const needs: Record<string, Permission> = {
  getTenant: 'tenant:read',
  updateTenant: 'tenant:write',
  setLogo: 'tenant:write',
  deleteLogo: 'tenant:write',
  listMembers: 'members:read',
  getMember: 'members:read',
  updateMember: 'members:write',
  removeMember: 'members:write',
  endMemberSessions: 'members:write',
  listInvitations: 'invitations:read',
  createInvitation: 'invitations:write',
  resendInvitation: 'invitations:write',
  revokeInvitation: 'invitations:write',
  streamEvents: 'events:read',
  listAuditEvents: 'audit:read',
  exportAuditEvents: 'audit:read',
  verifyAuditEvents: 'audit:read',
  listFiles: 'files:read',
  getFile: 'files:read',
  getFileContent: 'files:read',
  getFileUrl: 'files:read',
  listUploads: 'files:read',
  createFile: 'files:write',
  deleteFile: 'files:write',
  restoreFile: 'files:write',
  createUpload: 'files:write',
  completeUpload: 'files:write',
  endUpload: 'files:write',
  createResumableUpload: 'files:write',
  getResumableUpload: 'files:write',
  continueResumableUpload: 'files:write',
  cancelResumableUpload: 'files:write',
  listWebhooks: 'webhooks:read',
  getWebhook: 'webhooks:read',
  listWebhookDeliveries: 'webhooks:read',
  getWebhookDelivery: 'webhooks:read',
  testWebhook: 'webhooks:replay',
  replayWebhook: 'webhooks:replay',
  replayWebhookDelivery: 'webhooks:replay'
}

const forbidden = (side: Side) => ({ status: 403, code: 'forbidden', deniedIn: side })

/** The cases whose actor is an API key. */
export class KeyCases extends Cases {
  readonly #planted = new Map<string, Person>()

  /** Plants a key once for all operations. */
  async #plant(side: Side, facts: KeyFacts): Promise<Person> {
    const name = JSON.stringify([side.id, facts])
    const known = this.#planted.get(name)
    if (known) return known
    const key = await plantKey(this.world.sql, side, facts)
    this.#planted.set(name, key)
    await this.rebase()
    return key
  }

  /** Calls that must succeed: the key has the permission, and a role that may have it. */
  protected async allowKeys(operation: Operation, policy: Policy): Promise<void> {
    const { world } = this
    const { a } = world
    const permission = needs[operation.id]
    if (operation.permission !== permission) {
      this.fail(operation.id, `needs ${operation.permission} by the document and ${permission} by the policy`)
    }
    if (permission === undefined) return
    for (const role of keyRoles.filter((each) => mayHave(each, permission) && mayCall(policy, each))) {
      const key = await this.#plant(a, { role, permissions: [permission] })
      const plantPerson: World['plantPerson'] = async (where, as) =>
        where.id === a.id && as === role ? key : world.plantPerson(where, as)
      const side = { ...a, people: { ...a.people, [role]: key } }
      const call = await policy.make({ ...world, plantPerson }, side, role)
      await this.allow(operation, policy, `K0 ${role} with ${permission}`, call)
    }
  }

  /** Calls that must be refused, whatever else the key may do. */
  protected async refuseKeys(operation: Operation, policy: Policy): Promise<void> {
    const { a, b, c, app } = this.world
    const call = await policy.make(this.world, a, 'owner')
    const own = attemptOf(operation, { ...call, side: a, caller: undefined })
    await this.rebase()
    const plant = (side: Side, facts: KeyFacts) => this.#plant(side, facts)
    const as = ({ token }: { token: string }, host = own.host, scheme = 'Bearer') => ({
      ...own,
      host,
      headers: {
        ...own.headers,
        ...bearerOf({ token } as Person),
        ...(scheme !== 'Bearer' && { authorization: `${scheme} ${token}` })
      }
    })
    const permission = needs[operation.id]
    for (const role of keyRoles) {
      const none = await plant(a, { role, permissions: [] })
      await this.refuse(operation, `K4 ${role} without permissions`, as(none), forbidden(a))
      const rest = permissions.filter((each) => each !== permission)
      const others = await plant(a, { role, permissions: rest })
      await this.refuse(operation, `K5 ${role} with all other permissions`, as(others), forbidden(a))
      if (permission !== undefined && mayCall(policy, role)) continue
      const all = await plant(a, { role, permissions })
      await this.refuse(operation, `K6 ${role} with all permissions`, as(all), forbidden(a))
      await this.refuse(
        operation,
        `K6 ${role} with all permissions, on the general host`,
        as(all, 'localhost'),
        forbidden(a)
      )
    }
    const all = { role: 'admin', permissions } as const
    const elsewhere = await plant(a, { ...all, cidrs: ['192.0.2.0/24', '2001:db8::/32'] })
    await this.refuse(operation, 'K7 from another address', as(elsewhere), forbidden(a))
    const expired = { status: 401, code: 'token_expired' }
    await this.refuse(operation, 'K8 expired', as(await plant(a, { ...all, expired: true })), expired)

    const [ofA, ofB, ofC] = [await plant(a, all), await plant(b, all), await plant(c, all)]
    const mismatch = (side: Side) => ({ status: 403, code: 'tenant_mismatch', deniedIn: side })
    await this.refuse(operation, 'K9 of B on the host of A', as(ofB), mismatch(b))
    await this.refuse(operation, 'K9 of A on the host of B', as(ofA, b.host), mismatch(a))
    const suspended = { status: 403, code: 'tenant_suspended' }
    await this.refuse(operation, 'K10 of a suspended agency', as(ofC, c.host), suspended)
    await this.refuse(operation, 'K10 of a suspended agency on the general host', as(ofC, 'localhost'), suspended)
    const bound = { status: 401, code: 'invalid_token' }
    await this.refuse(operation, 'K11 as a bound token', as(ofA, own.host, 'DPoP'), bound)

    const { claims } = await app.apiKeys.lookUp(ofA.token)
    if (!claims) throw new Error('the key of the matrix is not good')
    const tokenOf = (scope: Permission[]) => ({
      token: app.tokens.issueForKey({ claims, permissions: scope }).access_token
    })
    await this.refuse(operation, 'K12 the token of a key, without scope', as(tokenOf([])), forbidden(a))
    await this.refuse(
      operation,
      'K12 the token of a key, on the host of B',
      as(tokenOf([...permissions]), b.host),
      mismatch(a)
    )
  }
}

const mayHave = (role: KeyRole, permission: Permission) =>
  roleTable[role].rank >= roleTable[permissionTable[permission].role].rank

const mayCall = ({ access }: Policy, role: KeyRole) =>
  access !== 'public' && access !== 'internal' && access !== 'user' && allows(access, role)

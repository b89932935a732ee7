import { allows, roles } from '../src/auth/roles.ts'
import {
  type Call,
  forbidden,
  fresh,
  inFirst,
  notFound,
  openRead,
  type Policy,
  passing,
  read,
  standing
} from './authz-calls.ts'
import { domainPolicies } from './authz-policy-domains.ts'
import { filePolicies } from './authz-policy-files.ts'
import { keyPolicies } from './authz-policy-keys.ts'
import { mfaPolicies } from './authz-policy-mfa.ts'
import { passkeyPolicies } from './authz-policy-passkeys.ts'
import { providerPolicies } from './authz-policy-providers.ts'
import { signInPolicies } from './authz-policy-sign-in.ts'
import { webhookPolicies } from './authz-policy-webhooks.ts'
import { password } from './harness.ts'
import type { Side, World } from './isolation-world.ts'
import { unknownId } from './requests.ts'

/*
 * What the isolation matrix can not read from the OpenAPI document: a call of each operation that must succeed, and
 * which objects its parameters name. Who may call it is repeated here, so that a changed word at a route is noticed. An
 * operation that is not in this table fails the suite.
 */

/** Accepts an invitation as a person who has an account, so that no password has to be hashed. */
async function acceptance(world: World, side: Side): Promise<Call> {
  const elsewhere = await world.plantSide('D')
  const caller = elsewhere.people.viewer
  const id = await world.plantInvitation(side, 'viewer', caller.email)
  return {
    caller,
    side,
    body: { token: world.app.oneTimeTokens.issue('invitation', { tenant_id: side.id, id, generation: 1 }) }
  }
}

export const policies: Record<string, Policy> = {
  // health and docs
  getHealth: { ...openRead(), host: 'any' },
  getLiveness: { ...openRead(), host: 'any' },
  getReadiness: { ...openRead(), host: 'any' },
  getProblem: { ...openRead({ params: { code: 'not_found' } }), host: 'any' },
  getOpenapiJson: openRead(),
  getOpenapiYaml: openRead(),

  ...signInPolicies,
  ...mfaPolicies,
  ...providerPolicies,
  ...domainPolicies,
  ...webhookPolicies,
  ...keyPolicies,
  ...passkeyPolicies,

  // the signed-in person
  getMe: read('user', { tagged: true }),
  updateMe: {
    access: 'user',
    status: 200,
    tagged: true,
    audited: true,
    make: standing(() => ({ body: { name: fresh('Renamed') } }))
  },
  deleteMe: {
    access: 'user',
    status: 204,
    audited: true,
    make: passing(() => ({ body: { password } }))
  },
  changePassword: {
    access: 'user',
    status: 204,
    audited: true,
    make: passing(() => ({ body: { current_password: password, new_password: fresh('another horse') } }))
  },
  listMySessions: read('user', { paged: true }),
  endMyOtherSessions: {
    access: 'user',
    status: 204,
    audited: true,
    make: passing(async (world, side, caller) => {
      await world.plantSession(side, caller.id)
      return {}
    })
  },
  endMySession: {
    access: 'user',
    status: 204,
    objects: { id: 'session' },
    audited: true,
    make: passing(async (world, side, caller) => ({ params: { id: await world.plantSession(side, caller.id) } })),
    excesses: [
      {
        title: 'the session of somebody else in the same agency',
        ...notFound,
        call: inFirst('owner', ({ a }) => ({ params: { id: a.people.viewer.sid } })),
        likeNothing: inFirst('owner', () => ({ params: { id: unknownId } }))
      }
    ]
  },
  listMyTenants: read('user', { paged: true }),

  // the agency
  createTenant: {
    access: 'user',
    status: 201,
    creates: true,
    audited: true,
    make: standing(() => ({ body: { name: 'One more', slug: fresh('more') } })),
    excesses: [
      {
        title: 'the name of another agency, which is public',
        status: 409,
        code: 'slug_taken',
        call: inFirst('owner', ({ b }) => ({ body: { name: 'Mine', slug: b.slug } }))
      }
    ]
  },
  getTenant: read('viewer', { tagged: true }),
  updateTenant: {
    access: 'admin',
    status: 200,
    tagged: true,
    audited: true,
    make: standing((_, side) => ({ body: { name: `${side.canary} ${fresh('name')}` } }))
  },
  exportTenant: read('owner', { audited: true }),
  deleteTenant: {
    access: 'owner',
    status: 202,
    audited: true,
    make: async (world, _, role) => {
      const side = await world.plantSide('D')
      return { caller: side.people[role], side, body: { slug: side.slug } }
    },
    excesses: [
      {
        title: 'the name of another agency for confirmation',
        status: 400,
        code: 'validation_failed',
        call: inFirst('owner', ({ b }) => ({ body: { slug: b.slug } })),
        likeNothing: inFirst('owner', () => ({ body: { slug: 'no-such-agency' } }))
      }
    ]
  },
  transferTenant: {
    access: 'owner',
    status: 204,
    audited: true,
    make: async (world, _, role) => {
      const side = await world.plantSide('D')
      return { caller: side.people[role], side, body: { user_id: side.people.member.id } }
    },
    excesses: [
      {
        title: 'a person of another agency',
        ...notFound,
        call: inFirst('owner', ({ b }) => ({ body: { user_id: b.people.member.id } })),
        likeNothing: inFirst('owner', () => ({ body: { user_id: unknownId } }))
      }
    ]
  },

  // people
  listMembers: read('viewer', { paged: true }),
  getMember: read('viewer', {
    objects: { user_id: 'member' },
    make: standing((_, side) => ({ params: { user_id: side.people.owner.id } }))
  }),
  updateMember: {
    access: 'admin',
    status: 200,
    objects: { user_id: 'member' },
    audited: true,
    make: standing(async (world, side) => ({
      params: { user_id: (await world.plantPerson(side, 'member')).id },
      body: { role: 'viewer' }
    })),
    excesses: [
      {
        title: 'an admin makes an owner',
        ...forbidden,
        call: inFirst('admin', ({ a }) => ({ params: { user_id: a.people.member.id }, body: { role: 'owner' } }))
      },
      {
        title: 'an admin changes an owner',
        ...forbidden,
        call: inFirst('admin', ({ a }) => ({ params: { user_id: a.people.owner.id }, body: { role: 'viewer' } }))
      },
      {
        title: 'an admin makes themselves an owner',
        ...forbidden,
        call: inFirst('admin', ({ a }) => ({ params: { user_id: a.people.admin.id }, body: { role: 'owner' } }))
      }
    ]
  },
  removeMember: {
    access: 'viewer',
    status: 204,
    objects: { user_id: 'member' },
    audited: true,
    // admins remove a member, and lower roles can only remove themselves
    make: async (world, side, role) => {
      const person = await world.plantPerson(side, role)
      const target = allows('admin', role) ? await world.plantPerson(side, 'member') : person
      return { caller: person, side, params: { user_id: target.id } }
    },
    excesses: [
      ...roles
        .filter((role) => !allows('admin', role))
        .map((role) => ({
          title: `a ${role} removes somebody`,
          ...forbidden,
          call: inFirst(role, async (world) => ({
            params: { user_id: (await world.plantPerson(world.a, 'viewer')).id }
          }))
        })),
      {
        title: 'an admin removes an owner',
        ...forbidden,
        call: inFirst('admin', ({ a }) => ({ params: { user_id: a.people.owner.id } }))
      }
    ]
  },
  endMemberSessions: {
    access: 'admin',
    status: 204,
    objects: { user_id: 'member' },
    audited: true,
    make: standing(async (world, side) => ({ params: { user_id: (await world.plantPerson(side, 'member')).id } })),
    excesses: [
      {
        title: 'an admin signs an owner out',
        ...forbidden,
        call: inFirst('admin', ({ a }) => ({ params: { user_id: a.people.owner.id } }))
      }
    ]
  },

  // invitations
  listInvitations: read('admin', { paged: true }),
  createInvitation: {
    access: 'admin',
    status: 201,
    creates: true,
    audited: true,
    make: standing(() => ({ body: { email: `${fresh('new')}@example.com`, role: 'viewer' } })),
    also: [
      {
        title: 'an address that B has invited too',
        call: inFirst('owner', async (world) => {
          const email = `${fresh('shared')}@example.com`
          await world.plantInvitation(world.b, 'viewer', email)
          return { body: { email, role: 'viewer' } }
        })
      }
    ],
    excesses: [
      {
        title: 'an owner by mail',
        status: 400,
        code: 'validation_failed',
        call: inFirst('owner', () => ({ body: { email: `${fresh('new')}@example.com`, role: 'owner' } }))
      }
    ]
  },
  resendInvitation: {
    access: 'admin',
    status: 202,
    objects: { id: 'invitation' },
    audited: true,
    make: standing(async (world, side) => ({ params: { id: await world.plantInvitation(side) } }))
  },
  revokeInvitation: {
    access: 'admin',
    status: 204,
    objects: { id: 'invitation' },
    audited: true,
    make: standing(async (world, side) => ({ params: { id: await world.plantInvitation(side) } }))
  },
  acceptInvitation: {
    access: 'public',
    status: 200,
    bearer: 'looked at',
    audited: true,
    make: acceptance,
    excesses: [
      {
        title: "the invitation of another agency on this one's host",
        ...notFound,
        call: async (world) => ({ ...(await acceptance(world, world.b)), side: world.a }),
        likeNothing: async (world) => ({
          ...(await acceptance(world, world.b)),
          side: world.a,
          body: { token: 'none' }
        })
      },
      {
        title: 'the invitation of somebody else',
        status: 403,
        code: 'forbidden',
        denied: 'b',
        call: async (world) => ({ ...(await acceptance(world, world.a)), caller: world.b.people.owner })
      },
      {
        title: 'a refresh token for an invitation',
        ...notFound,
        call: async ({ a }) => ({ caller: undefined, side: a, body: { token: a.people.owner.refresh_token } })
      }
    ]
  },

  // files and images
  ...filePolicies,

  // events
  streamEvents: read('viewer'),

  // the audit log
  listAuditEvents: read('admin', { paged: true }),
  exportAuditEvents: read('admin'),
  verifyAuditEvents: read('admin')
}

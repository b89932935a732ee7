import { createHash, randomBytes } from 'node:crypto'
import { type Access, allows, type Role, roles } from '../src/auth/roles.ts'
import { form, onePixel } from './forms.ts'
import { password } from './harness.ts'
import type { Person, Side, World } from './isolation.ts'
import { unknownId } from './requests.ts'

/*
 * What the isolation matrix can not read from the OpenAPI document: who may call each operation (said a second time, so that a
 * word that is changed at a route is noticed), a call that must succeed, and whose objects stand where. An operation that is not
 * in this table fails the suite.
 */

/** A call that succeeds, on objects that were made for it where it uses them up. */
export type Call = {
  caller: Person | undefined
  /** Where the caller is at home. Undefined: the general host. */
  side: Side | undefined
  params?: Record<string, string>
  query?: Record<string, string>
  body?: Record<string, unknown>
  /** What is no JSON. */
  payload?: Buffer
  headers?: Record<string, string>
}

export type ObjectKind = 'file' | 'invitation' | 'member' | 'session' | 'upload'

/** A call by which somebody who may call the operation asks for too much. */
export type Excess = {
  title: string
  status: number
  code: string
  /** Whether the reply has to be the same when the object of somebody else is replaced by none at all. */
  likeNothing?: (world: World) => Promise<Call>
  /** The agency of the signed-in person who tries it, in whose audit log it has to be. */
  denied?: 'a' | 'b'
  call: (world: World) => Promise<Call>
}

export type Policy = {
  access: Access
  status: number
  /** The positive control, in an agency, as a person with a role there. */
  make: (world: World, side: Side, role: Role) => Promise<Call>
  /** What the path's parameters name. */
  objects?: Record<string, ObjectKind>
  /** A list: it takes cursors, and has more than one entry. */
  paged?: true
  /** Its reply has a tag, and takes If-None-Match or If-Match. */
  tagged?: true
  /** Writes an audit event with its change; neither is there without the other. */
  audited?: true
  /** It makes something, so that a key for repetition must not reach across agencies. */
  creates?: true
  /** What a bearer means to an operation that is public. */
  bearer?: 'ignored' | 'costly' | 'looked at' | 'signature'
  /** Answers on hosts that are not served, or on that of a suspended agency. */
  host?: 'any' | 'suspended'
  excesses?: Excess[]
  /** Calls that succeed although B has the like. */
  also?: { title: string; call: (world: World) => Promise<Call> }[]
}

export const fresh = (prefix: string) => `${prefix}-${randomBytes(6).toString('hex')}`

/** By the person with that role who is always there. */
const standing =
  (more: (world: World, side: Side) => Partial<Call> | Promise<Partial<Call>> = () => ({})) =>
  async (world: World, side: Side, role: Role): Promise<Call> => ({
    caller: side.people[role],
    side,
    ...(await more(world, side))
  })

/** By somebody who is made for it, in an agency that keeps its owner. */
const passing =
  (more: (world: World, side: Side, caller: Person) => Partial<Call> | Promise<Partial<Call>> = () => ({})) =>
  async (world: World, side: Side, role: Role): Promise<Call> => {
    const caller = await world.plantPerson(side, role)
    return { caller, side, ...(await more(world, side, caller)) }
  }

/** As the person who is always there in the first agency. */
const inFirst =
  (role: Role, more: (world: World) => Partial<Call> | Promise<Partial<Call>>) =>
  async (world: World): Promise<Call> => ({
    caller: world.a.people[role],
    side: world.a,
    ...(await more(world))
  })

const openRead = (call: Partial<Call> = {}): Policy => ({
  access: 'public',
  status: 200,
  bearer: 'ignored',
  make: async (_, side) => ({ caller: undefined, side, ...call })
})

const read = (access: Access, more: Partial<Policy> = {}): Policy => ({
  access,
  status: 200,
  make: standing(),
  ...more
})

const forbidden = { status: 403, code: 'forbidden', denied: 'a' } as const
const notFound = { status: 404, code: 'not_found' } as const

const registration = (slug: string, email: string) => ({
  tenant: { name: 'A new agency', slug },
  name: 'Somebody new',
  email,
  password
})

/** An invitation of somebody who has an account, so that no password has to be hashed. */
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

/** By whoever has that role, with a file of their own. */
const withFile = () => standing(async (world, side) => ({ params: { id: await world.plantFile(side) } }))

/** A file that the caller has begun: members may finish and give up their own only. */
const withUpload =
  (kind: 'direct' | 'resumable', more: (side: Side) => Partial<Call> = () => ({})) =>
  async (world: World, side: Side, role: Role): Promise<Call> => ({
    caller: side.people[role],
    side,
    params: { id: await world.plantUpload(side, kind, side.people[role].id) },
    ...more(side)
  })

const oneNote = () => form([{ name: 'file', filename: 'notes.txt', type: 'text/plain', content: `${fresh('note')}` }])
const oneImage = () => form([{ name: 'file', filename: 'face.png', type: 'image/png', content: onePixel }])
const tus = { 'tus-resumable': '1.0.0' }
const nextBytes = (side: Side): Partial<Call> => ({
  payload: Buffer.from(side.canary.slice(0, 8)),
  headers: { ...tus, 'upload-offset': '0', 'content-type': 'application/offset+octet-stream' }
})

/** A token of a link to a file or an upload of an agency. */
const linkOf = (world: World, side: Side, purpose: 'read' | 'write', id: string) =>
  world.app.fileLinks.issue(purpose, { tenant_id: side.id, id, expires_at: new Date(Date.now() + 60_000) })

/** Somebody else's of the same agency: as if there were none. */
const uploadOfSomebodyElse = (
  kind: 'direct' | 'resumable',
  more: (side: Side) => Partial<Call> = () => ({})
): Excess => ({
  title: 'the upload of somebody else in the same agency',
  ...notFound,
  call: inFirst('owner', async (world) => ({
    params: { id: await world.plantUpload(world.a, kind, world.a.people.member.id) },
    ...more(world.a)
  })),
  likeNothing: inFirst('owner', ({ a }) => ({ params: { id: unknownId }, ...more(a) }))
})

export const policies: Record<string, Policy> = {
  // health and docs
  getHealth: { ...openRead(), host: 'any' },
  getLiveness: { ...openRead(), host: 'any' },
  getReadiness: { ...openRead(), host: 'any' },
  getProblem: { ...openRead({ params: { code: 'not_found' } }), host: 'any' },
  getOpenapiJson: openRead(),
  getOpenapiYaml: openRead(),

  // auth
  register: {
    access: 'public',
    status: 201,
    bearer: 'costly',
    audited: true,
    make: async () => ({
      caller: undefined,
      side: undefined,
      body: registration(fresh('new'), `${fresh('new')}@example.com`)
    }),
    excesses: [
      {
        title: 'the name of another agency, which is public',
        status: 409,
        code: 'slug_taken',
        call: async ({ b }) => ({
          caller: undefined,
          side: undefined,
          body: registration(b.slug, `${fresh('new')}@example.com`)
        })
      },
      {
        title: 'the address of a person in another agency',
        status: 409,
        code: 'email_taken',
        call: async ({ b }) => ({
          caller: undefined,
          side: undefined,
          body: registration(fresh('new'), b.people.owner.email)
        })
      }
    ]
  },
  login: {
    access: 'public',
    status: 200,
    bearer: 'costly',
    audited: true,
    make: async (_, side, role) => ({
      caller: undefined,
      side,
      body: { email: side.people[role].email, password }
    }),
    excesses: [
      {
        title: "the person of another agency on this one's host",
        status: 401,
        code: 'invalid_credentials',
        // the address that was typed goes into the audit log of the host, so this is the host of a third one
        call: async (world) => ({
          caller: undefined,
          side: await world.plantSide('D'),
          body: { email: world.b.people.owner.email, password }
        }),
        likeNothing: async (world) => ({
          caller: undefined,
          side: await world.plantSide('D'),
          body: { email: `${fresh('nobody')}@example.com`, password }
        })
      },
      {
        title: 'an agency that is named and is not theirs',
        status: 401,
        code: 'invalid_credentials',
        call: async (world) => ({
          caller: undefined,
          side: undefined,
          body: { email: world.b.people.owner.email, password, tenant: (await world.plantSide('D')).slug }
        }),
        likeNothing: async ({ b }) => ({
          caller: undefined,
          side: undefined,
          body: { email: b.people.owner.email, password, tenant: 'no-such-agency' }
        })
      }
    ]
  },
  refresh: {
    access: 'public',
    status: 200,
    bearer: 'ignored',
    host: 'suspended',
    make: async (world, side, role) => {
      const person = await world.plantPerson(side, role)
      return { caller: undefined, side, body: { refresh_token: person.refresh_token } }
    },
    excesses: [
      {
        title: "the refresh token of another agency on this one's host",
        status: 403,
        code: 'tenant_mismatch',
        call: async ({ a, b }) => ({
          caller: undefined,
          side: a,
          body: { refresh_token: b.people.owner.refresh_token }
        })
      },
      {
        title: 'the access token of another agency for a refresh token',
        status: 401,
        code: 'invalid_refresh_token',
        call: async ({ a, b }) => ({ caller: undefined, side: a, body: { refresh_token: b.people.owner.token } })
      }
    ]
  },
  logout: {
    access: 'public',
    status: 204,
    bearer: 'signature',
    host: 'suspended',
    audited: true,
    make: async (world, side, role) => {
      const person = await world.plantPerson(side, role)
      return { caller: undefined, side, body: { refresh_token: person.refresh_token } }
    },
    excesses: [
      {
        title: "the refresh token of another agency on this one's host",
        status: 403,
        code: 'tenant_mismatch',
        call: async ({ a, b }) => ({
          caller: undefined,
          side: a,
          body: { refresh_token: b.people.owner.refresh_token }
        })
      },
      {
        title: "the bearer of another agency on this one's host",
        status: 403,
        code: 'tenant_mismatch',
        denied: 'b',
        call: async ({ a, b }) => ({ caller: b.people.owner, side: a })
      }
    ]
  },
  switchTenant: {
    access: 'user',
    status: 200,
    audited: true,
    make: passing(async (world, _, caller) => {
      const other = await world.plantSide('D')
      await world.plantMember(other, caller.id, 'viewer')
      return { body: { tenant: other.slug } }
    }),
    excesses: [
      {
        title: 'an agency that is not theirs',
        ...notFound,
        call: inFirst('owner', ({ b }) => ({ body: { tenant: b.slug } })),
        likeNothing: inFirst('owner', () => ({ body: { tenant: 'no-such-agency' } }))
      },
      {
        title: 'a suspended agency that is not theirs',
        ...notFound,
        call: inFirst('owner', ({ c }) => ({ body: { tenant: c.slug } })),
        likeNothing: inFirst('owner', () => ({ body: { tenant: 'no-such-agency' } }))
      }
    ]
  },

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
    make: standing((_, side) => ({ params: { user_id: side.people.member.id } }))
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
    // below an admin that is to leave
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

  // files
  createFile: {
    access: 'member',
    status: 201,
    audited: true,
    make: standing(oneNote)
  },
  listFiles: read('viewer', { paged: true }),
  getFile: read('viewer', { objects: { id: 'file' }, make: withFile() }),
  getFileContent: read('viewer', { objects: { id: 'file' }, make: withFile() }),
  getFileUrl: read('viewer', { objects: { id: 'file' }, make: withFile() }),
  deleteFile: {
    access: 'member',
    status: 204,
    objects: { id: 'file' },
    audited: true,
    make: standing(async (world, side) => ({ params: { id: await world.plantFile(side, side.people.member.id) } })),
    excesses: [
      {
        title: 'a member deletes the file of somebody else',
        ...forbidden,
        call: inFirst('member', async (world) => ({ params: { id: await world.plantFile(world.a) } }))
      }
    ]
  },
  restoreFile: {
    access: 'member',
    status: 200,
    objects: { id: 'file' },
    audited: true,
    make: standing(async (world, side) => ({
      params: { id: await world.plantFile(side, side.people.member.id, 'deleted') }
    })),
    excesses: [
      {
        title: 'a member restores the file of somebody else',
        ...forbidden,
        call: inFirst('member', async (world) => ({
          params: { id: await world.plantFile(world.a, world.a.people.owner.id, 'deleted') }
        }))
      }
    ]
  },
  getLinkedFileContent: {
    access: 'public',
    status: 200,
    bearer: 'ignored',
    make: async (world, side) => ({
      caller: undefined,
      side,
      params: { token: linkOf(world, side, 'read', await world.plantFile(side)) }
    }),
    excesses: [
      {
        title: "the link of another agency on this one's host",
        status: 403,
        code: 'tenant_mismatch',
        call: async (world) => ({
          caller: undefined,
          side: world.a,
          params: { token: linkOf(world, world.b, 'read', await world.plantFile(world.b)) }
        })
      },
      {
        title: 'the link of one agency to the file of another',
        ...notFound,
        call: async (world) => ({
          caller: undefined,
          side: undefined,
          params: { token: linkOf(world, world.a, 'read', await world.plantFile(world.b)) }
        }),
        likeNothing: async (world) => ({
          caller: undefined,
          side: undefined,
          params: { token: linkOf(world, world.a, 'read', unknownId) }
        })
      },
      {
        title: 'a link for writing',
        ...notFound,
        call: async (world) => ({
          caller: undefined,
          side: world.a,
          params: { token: linkOf(world, world.a, 'write', await world.plantFile(world.a)) }
        })
      },
      {
        title: 'the link of a suspended agency',
        ...notFound,
        call: async (world) => ({
          caller: undefined,
          side: undefined,
          params: { token: linkOf(world, world.c, 'read', await world.plantFile(world.c)) }
        })
      }
    ]
  },
  listUploads: { access: 'member', status: 200, make: passing() },
  endUpload: {
    access: 'member',
    status: 204,
    objects: { id: 'upload' },
    audited: true,
    make: withUpload('resumable'),
    excesses: [
      {
        title: 'a member ends the upload of somebody else',
        ...notFound,
        call: inFirst('member', async (world) => ({ params: { id: await world.plantUpload(world.a, 'resumable') } })),
        likeNothing: inFirst('member', () => ({ params: { id: unknownId } }))
      }
    ]
  },
  createUpload: {
    access: 'member',
    status: 201,
    make: standing(() => ({
      body: {
        name: 'notes.txt',
        content_type: 'text/plain',
        size: 5,
        sha256: createHash('sha256').update('hello').digest('hex')
      }
    }))
  },
  putLinkedFileContent: {
    access: 'public',
    status: 204,
    bearer: 'ignored',
    make: async (world, side) => ({
      caller: undefined,
      side,
      params: { token: linkOf(world, side, 'write', await world.plantUpload(side, 'direct')) },
      payload: Buffer.from(`${side.canary} writes this`),
      headers: { 'content-type': 'text/plain' }
    }),
    excesses: [
      {
        title: "the link of another agency on this one's host",
        status: 403,
        code: 'tenant_mismatch',
        call: async (world) => ({
          caller: undefined,
          side: world.a,
          params: { token: linkOf(world, world.b, 'write', await world.plantUpload(world.b, 'direct')) },
          payload: Buffer.from('x')
        })
      },
      {
        title: 'a link for reading',
        ...notFound,
        call: async (world) => ({
          caller: undefined,
          side: world.a,
          params: { token: linkOf(world, world.a, 'read', await world.plantUpload(world.a, 'direct')) },
          payload: Buffer.from('x')
        })
      },
      {
        title: 'the link of a suspended agency',
        ...notFound,
        call: async (world) => ({
          caller: undefined,
          side: undefined,
          params: { token: linkOf(world, world.c, 'write', await world.plantUpload(world.c, 'direct')) },
          payload: Buffer.from('x')
        })
      }
    ]
  },
  completeUpload: {
    access: 'member',
    status: 200,
    objects: { id: 'upload' },
    audited: true,
    make: withUpload('direct'),
    excesses: [uploadOfSomebodyElse('direct')]
  },
  createResumableUpload: {
    access: 'member',
    status: 201,
    make: standing(() => ({ headers: { ...tus, 'upload-length': '5' } }))
  },
  getResumableUpload: {
    access: 'member',
    status: 200,
    objects: { id: 'upload' },
    make: withUpload('resumable', () => ({ headers: tus })),
    excesses: [uploadOfSomebodyElse('resumable', () => ({ headers: tus }))]
  },
  // who writes is noted before anything is recorded, so `audited` would find a difference that means nothing
  continueResumableUpload: {
    access: 'member',
    status: 204,
    objects: { id: 'upload' },
    make: withUpload('resumable', nextBytes),
    excesses: [uploadOfSomebodyElse('resumable', nextBytes)]
  },
  cancelResumableUpload: {
    access: 'member',
    status: 204,
    objects: { id: 'upload' },
    make: withUpload('resumable', () => ({ headers: tus })),
    excesses: [uploadOfSomebodyElse('resumable', () => ({ headers: tus }))]
  },

  // images
  setAvatar: { access: 'user', status: 200, audited: true, make: standing(oneImage) },
  deleteAvatar: { access: 'user', status: 204, audited: true, make: passing() },
  setLogo: { access: 'admin', status: 200, audited: true, make: standing(oneImage) },
  deleteLogo: {
    access: 'admin',
    status: 204,
    audited: true,
    make: async (world, _, role) => {
      const side = await world.plantSide('D')
      return { caller: side.people[role], side }
    }
  },
  getImage: {
    ...openRead(),
    make: async (world, side) => ({
      caller: undefined,
      side,
      params: { owner_id: side.id, id: await world.plantImage(side) }
    })
  },

  // the audit log
  listAuditEvents: read('admin', { paged: true }),
  exportAuditEvents: read('admin'),
  verifyAuditEvents: read('admin')
}

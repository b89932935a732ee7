import { createHash } from 'node:crypto'
import type { Role } from '../src/auth/roles.ts'
import {
  type Call,
  type Excess,
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
import { form, onePixel } from './forms.ts'
import type { Side, World } from './isolation-world.ts'
import { unknownId } from './requests.ts'

/*
 * The entries of test/authz-policy.ts for files, uploads and images.
 */

/** A call by the person who has that role, on a new file of the agency. */
const withFile = () => standing(async (world, side) => ({ params: { id: await world.plantFile(side) } }))

/** A call on an upload that the caller has begun: members may complete and cancel only their own. */
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

/** The token of a link to a file or an upload. */
const linkOf = (world: World, side: Side, purpose: 'read' | 'write', id: string) =>
  world.app.fileLinks.issue(purpose, { tenant_id: side.id, id, expires_at: new Date(Date.now() + 60_000) })

/** The upload of another member of the same agency is answered like one that does not exist. */
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

export const filePolicies: Record<string, Policy> = {
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
  // not `audited`: it notes who writes in a transaction of its own, before the audit event
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
  }
}

import { permissions } from '../src/auth/api-keys/permissions.ts'
import { fresh, notFound, type Policy, passing, read } from './authz-calls.ts'
import { plantKey } from './isolation-keys.ts'
import type { Side, World } from './isolation-world.ts'
import { unknownId } from './requests.ts'

/*
 * The entries of test/authz-policy.ts for API keys.
 */

const plantOne = async ({ sql }: World, side: Side) => ({
  params: { id: (await plantKey(sql, side, { role: 'viewer', permissions: [] })).id }
})

/** A call of an admin who has just signed in. */
const byAdmin =
  (make: (world: World) => Promise<{ params: { id: string } }>, body?: object) => async (world: World) => ({
    caller: await world.plantPerson(world.a, 'admin'),
    side: world.a,
    ...(body && { body: { ...body } }),
    ...(await make(world))
  })

const ofAnother = (body?: object) => [
  {
    title: 'a key of another agency',
    ...notFound,
    likeNothing: byAdmin(async () => ({ params: { id: unknownId } }), body),
    call: byAdmin((world) => plantOne(world, world.b), body)
  }
]

export const keyPolicies: Record<string, Policy> = {
  listApiKeys: read('admin', { paged: true }),
  createApiKey: {
    access: 'admin',
    status: 201,
    audited: true,
    // A has many keys by now
    make: async (world, _, role) => {
      const side = await world.plantSide('D')
      const body = { name: fresh('key'), role: 'member', permissions: ['files:read'] }
      return { caller: side.people[role], side, body }
    }
  },
  getApiKey: { ...read('admin', { make: passing(plantOne) }), excesses: ofAnother() },
  rotateApiKey: {
    access: 'admin',
    status: 201,
    audited: true,
    make: passing(async (world, side) => ({ ...(await plantOne(world, side)), body: { overlap_seconds: 60 } })),
    excesses: ofAnother({ overlap_seconds: 60 })
  },
  endApiKey: { access: 'admin', status: 204, audited: true, make: passing(plantOne), excesses: ofAnother() },
  getToken: {
    access: 'public',
    status: 200,
    // it reads the Authorization header by rules of its own: test/client-credentials.test.ts
    make: async ({ sql }, side) => {
      const { id, token } = await plantKey(sql, side, { role: 'viewer', permissions })
      const form = { grant_type: 'client_credentials', client_id: id, client_secret: token }
      return {
        caller: undefined,
        side,
        payload: Buffer.from(new URLSearchParams(form).toString()),
        headers: { 'content-type': 'application/x-www-form-urlencoded' }
      }
    }
  },
  getAuthorizationServer: {
    access: 'public',
    status: 200,
    bearer: 'ignored',
    make: async () => ({ caller: undefined, side: undefined })
  }
}

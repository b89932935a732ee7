import { fresh, inFirst, linkExpired, notFound, type Policy, passing, standing } from './authz-calls.ts'
import { password } from './harness.ts'

/*
 * The entries of test/authz-policy.ts for signing up, in and out.
 */

const registration = (slug: string, email: string) => ({
  tenant: { name: 'A new agency', slug },
  name: 'Somebody new',
  email,
  password
})

export const signInPolicies: Record<string, Policy> = {
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
        // the audit log of the host records the address that was typed, so the host is that of a third agency
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
  requestPasswordReset: {
    access: 'public',
    status: 202,
    bearer: 'costly',
    // an address that nobody has: for the person of an agency, its audit log would show later that a mail was sent
    make: async (_, side) => ({ caller: undefined, side, body: { email: `${fresh('nobody')}@example.com` } })
  },
  resetPassword: {
    access: 'public',
    status: 204,
    bearer: 'costly',
    audited: true,
    make: async (world, side, role) => {
      const person = await world.plantPerson(side, role)
      const token = await world.plantLink(side, person, 'reset')
      return { caller: undefined, side, body: { token, password: fresh('another horse') } }
    },
    excesses: [
      {
        title: "the mailed token of another agency on this one's host",
        ...linkExpired,
        call: async (world) => ({
          caller: undefined,
          side: world.a,
          body: { token: await world.plantLink(world.b, world.b.people.viewer, 'reset'), password }
        }),
        likeNothing: async ({ a }) => ({ caller: undefined, side: a, body: { token: 'none', password } })
      },
      {
        title: 'a refresh token for a mailed one',
        ...linkExpired,
        call: async ({ a }) => ({
          caller: undefined,
          side: a,
          body: { token: a.people.owner.refresh_token, password }
        })
      }
    ]
  },
  verifyEmail: {
    access: 'public',
    status: 204,
    bearer: 'costly',
    audited: true,
    make: async (world, side, role) => {
      const person = await world.plantPerson(side, role)
      return { caller: undefined, side, body: { token: await world.plantLink(side, person, 'verification') } }
    },
    excesses: [
      {
        title: "the mailed token of another agency on this one's host",
        ...linkExpired,
        call: async (world) => ({
          caller: undefined,
          side: world.a,
          body: { token: await world.plantLink(world.b, world.b.people.viewer, 'verification') }
        }),
        likeNothing: async ({ a }) => ({ caller: undefined, side: a, body: { token: 'none' } })
      },
      {
        title: 'the token that sets a password',
        ...linkExpired,
        call: async (world) => ({
          caller: undefined,
          side: world.a,
          body: { token: await world.plantLink(world.a, world.a.people.viewer, 'reset') }
        })
      }
    ]
  },
  resendVerification: { access: 'user', status: 202, make: standing() },
  changeEmail: {
    access: 'user',
    status: 202,
    audited: true,
    make: passing(() => ({ body: { email: `${fresh('new')}@example.com`, password } })),
    also: [
      {
        title: 'the address of a person in another agency, which is not told',
        // the audit log of the caller's agency records the address, so it is a third agency
        call: async (world) => {
          const side = await world.plantSide('D')
          return { caller: side.people.owner, side, body: { email: world.b.people.owner.email, password } }
        }
      }
    ]
  }
}

import { v7 as uuidv7 } from 'uuid'
import { createFlow, flowCookie } from '../src/auth/oauth-flows.ts'
import { type Call, fresh, inFirst, notFound, openRead, type Policy, passing, read, standing } from './authz-calls.ts'
import type { Person, Side, World } from './isolation-world.ts'
import { createVerifier } from './providers.ts'
import { unknownId } from './requests.ts'

/*
 * The entries of test/authz-policy.ts for sign-in at providers. GitHub is configured, and is never reached: nothing is
 * asked of it before a person comes back with a code.
 */

const pageOf = (side: Side) => `http://${side.slug}.localhost:8080/signed-in`
const { code_verifier, code_challenge } = createVerifier()

async function plantProvider({ app, sql }: World, side: Side): Promise<string> {
  const id = uuidv7()
  const { secret, key_id } = app.providers.seal(id, 'a secret')
  await sql.query(
    `insert into identity_providers (tenant_id, id, place, name, issuer, client_id, client_secret, key_id)
     select $1, $2, min(place), $3 || ' login', $4, $3, $5, $6 from generate_series(1, 10) as free (place)
     where not exists (select from identity_providers p where p.tenant_id = $1 and p.place = free.place)
     having min(place) is not null`,
    [side.id, id, side.canary, `https://${fresh('login')}.${side.canary}.example`, secret, key_id]
  )
  return id
}

/** A provider that the call may remove, so that the ten places are never taken. */
async function plantOnlyProvider(world: World, side: Side): Promise<string> {
  await world.sql.query('delete from identity_providers where tenant_id = $1', [side.id])
  return plantProvider(world, side)
}

async function plantIdentity({ sql }: World, person: Person): Promise<string> {
  const id = uuidv7()
  await sql.query(
    "insert into user_identities (id, user_id, provider, issuer, subject, email) values ($1, $2, 'github', 'https://github.com', $3, $4)",
    [id, person.id, fresh('subject'), person.email]
  )
  return id
}

async function signInCode(world: World, side: Side): Promise<Call> {
  const person = await world.plantPerson(side, 'member')
  const identity_id = await plantIdentity(world, person)
  const subject = { tenant_id: side.id, user_id: person.id, password_version: 1, identity_id, provider_id: null }
  const common = { id: uuidv7(), provider: 'github', code_challenge }
  const code = world.app.oauth.codes.issue({ ...common, purpose: 'sign_in', ...subject })
  return { caller: undefined, side, body: { code, code_verifier } }
}

function linkingCode(world: World, side: Side, { id: user_id, sid }: Person): string {
  const profile = {
    issuer: 'https://github.com',
    subject: fresh('subject'),
    email: null,
    email_verified: false,
    name: null
  }
  return world.app.oauth.codes.issue({
    ...{ id: uuidv7(), provider: 'github', tenant_id: side.id, code_challenge, purpose: 'link', own: false },
    ...{ session: { user_id, sid }, profile }
  })
}

const input = () => ({
  name: 'A login',
  issuer: `https://${fresh('issuer')}.example`,
  client_id: 'aggios',
  client_secret: 'a secret'
})
const ofAnotherAgency = (body?: Record<string, unknown>) => ({
  title: 'a provider of another agency',
  ...notFound,
  likeNothing: inFirst('owner', () => ({ params: { id: unknownId }, ...(body && { body }) })),
  call: inFirst('owner', async (world) => ({
    params: { id: await plantOnlyProvider(world, world.b) },
    ...(body && { body })
  }))
})

async function verifyAddress({ sql }: World, { id }: Person): Promise<void> {
  await sql.query('update users set email_verified_at = now() where id = $1', [id])
}

export const providerPolicies: Record<string, Policy> = {
  listSignInProviders: openRead(),
  startSignIn: {
    access: 'public',
    status: 302,
    bearer: 'costly',
    make: async (_, side) => ({
      ...{ caller: undefined, side, params: { provider: 'github' } },
      query: { redirect_to: pageOf(side), code_challenge, tenant: side.slug }
    }),
    excesses: [
      {
        title: 'the provider of another agency',
        ...notFound,
        call: async (world) => ({
          ...{ caller: undefined, side: world.a, params: { provider: await plantOnlyProvider(world, world.b) } },
          query: { redirect_to: pageOf(world.a), code_challenge }
        })
      },
      {
        title: 'an invitation to another agency',
        ...notFound,
        call: async (world) => {
          const id = await world.plantInvitation(world.b)
          const mailed = { tenant_id: world.b.id, id, generation: 1 }
          const invitation = world.app.oneTimeTokens.issue('invitation', mailed)
          return {
            ...{ caller: undefined, side: world.a, params: { provider: 'github' } },
            query: { redirect_to: pageOf(world.a), code_challenge, invitation }
          }
        }
      }
    ]
  },
  continueLinking: {
    access: 'public',
    status: 302,
    bearer: 'costly',
    make: async ({ app }, side, role) => {
      const { id: user_id, sid } = side.people[role]
      const flow = { provider: 'github', tenant_id: side.id, redirect_to: pageOf(side), code_challenge }
      const ticket = app.oauth.tickets.issue({ id: uuidv7(), ...flow, link: { user_id, sid } })
      return { caller: undefined, side: undefined, params: { provider: 'github' }, query: { ticket } }
    }
  },
  finishAtProvider: {
    access: 'public',
    status: 302,
    bearer: 'costly',
    make: async ({ app }, side) => {
      const asked = { provider: 'github', tenant_id: side.id, redirect_to: pageOf(side), code_challenge, link: null }
      const flow = createFlow(asked)
      const cookie = `${flowCookie(flow.state, { secure: false })}=${app.oauth.flows.issue(flow)}`
      return {
        ...{ caller: undefined, side: undefined, params: { provider: 'github' }, headers: { cookie } },
        query: { state: flow.state, error: 'access_denied' }
      }
    }
  },
  exchangeSignInCode: {
    access: 'public',
    status: 200,
    bearer: 'costly',
    audited: true,
    make: signInCode,
    excesses: [
      {
        title: "the code of a sign-in to another agency on this one's host",
        status: 403,
        code: 'tenant_mismatch',
        call: async (world) => ({ ...(await signInCode(world, world.b)), side: world.a })
      }
    ]
  },
  listIdentities: read('user'),
  startLinking: {
    access: 'user',
    status: 200,
    make: passing(async (world, side, caller) => {
      await verifyAddress(world, caller)
      return { body: { provider: 'github', redirect_to: pageOf(side), code_challenge } }
    })
  },
  confirmLinking: {
    access: 'user',
    status: 201,
    audited: true,
    make: passing(async (world, side, caller) => {
      await verifyAddress(world, caller)
      return { body: { code: linkingCode(world, side, caller), code_verifier } }
    }),
    excesses: [
      {
        title: 'the code of somebody in another agency',
        status: 401,
        code: 'invalid_sign_in_code',
        call: inFirst('owner', async (world) => {
          const other = await world.plantPerson(world.b, 'member')
          return { body: { code: linkingCode(world, world.b, other), code_verifier } }
        })
      }
    ]
  },
  unlinkIdentity: {
    access: 'user',
    status: 204,
    audited: true,
    make: passing(async (world, _, caller) => ({ params: { id: await plantIdentity(world, caller) } })),
    excesses: [
      {
        title: 'an identity of somebody in another agency',
        ...notFound,
        likeNothing: inFirst('owner', () => ({ params: { id: unknownId } })),
        call: inFirst('owner', async (world) => ({
          params: { id: await plantIdentity(world, await world.plantPerson(world.b, 'member')) }
        }))
      }
    ]
  },
  listIdentityProviders: read('owner'),
  getIdentityProvider: {
    access: 'owner',
    status: 200,
    make: standing(async (world, side) => ({ params: { id: await plantOnlyProvider(world, side) } })),
    excesses: [ofAnotherAgency()]
  },
  createIdentityProvider: {
    access: 'owner',
    status: 201,
    audited: true,
    make: passing(async ({ sql }, side) => {
      await sql.query('delete from identity_providers where tenant_id = $1', [side.id])
      return { body: input() }
    })
  },
  updateIdentityProvider: {
    access: 'owner',
    status: 200,
    audited: true,
    make: passing(async (world, side) => ({
      params: { id: await plantOnlyProvider(world, side) },
      body: { name: fresh('Renamed') }
    })),
    excesses: [ofAnotherAgency({ name: 'Mine' })]
  },
  deleteIdentityProvider: {
    access: 'owner',
    status: 204,
    audited: true,
    make: passing(async (world, side) => ({ params: { id: await plantOnlyProvider(world, side) } })),
    excesses: [ofAnotherAgency()]
  }
}

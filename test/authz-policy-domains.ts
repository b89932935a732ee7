import { domainRecord } from '../src/tenancy/domain-names.ts'
import { type Call, fresh, notFound, type Policy, passing, read } from './authz-calls.ts'
import type { Person, Side, World } from './isolation-world.ts'
import { unknownId } from './requests.ts'

/*
 * The entries of test/authz-policy.ts for the domains of agencies, and for the demand of their provider.
 */

/** A call of an owner of agency A who has just signed in. */
const byNewOwner = (more: (world: World) => Partial<Call> | Promise<Partial<Call>>) => async (world: World) => ({
  caller: await world.plantPerson(world.a, 'owner'),
  side: world.a,
  ...(await more(world))
})

/** A domain of the agency that is not proven yet. Its record is in DNS. */
async function plantDomain({ sql, dns }: World, { id }: Side): Promise<{ params: { name: string } }> {
  // without the agency's name, because the URL of a request is in the log
  const name = `${fresh('domain')}.example`
  const { rows } = await sql.query('insert into tenant_domains (tenant_id, name) values ($1, $2) returning challenge', [
    id,
    name
  ])
  const [{ challenge }] = rows
  const record = domainRecord(name, challenge)
  dns.answers.set(record.name, [record.value])
  return { params: { name } }
}

/** A provider of the agency, with all that it needs to be demanded. Ends the demand of another one. */
async function plantProvider({ sql }: World, { id }: Side, owner: Person): Promise<{ body: { provider_id: string } }> {
  await sql.query('update identity_providers set enforced_from = null where tenant_id = $1', [id])
  await sql.query("delete from identity_providers where tenant_id = $1 and issuer = 'https://enforced.example'", [id])
  const { rows } = await sql.query(
    `insert into identity_providers (tenant_id, id, place, name, issuer, client_id, client_secret, key_id)
     values ($1, uuid_v7(), 10, 'Provider', 'https://enforced.example', 'client', '', '') returning id`,
    [id]
  )
  const provider_id: string = rows[0].id
  await plantBreakGlass({ sql }, { id }, owner)
  await sql.query(
    // not due, because a look-up would change the row in the middle of a case
    `insert into tenant_domains (tenant_id, name, verified_at, due_at)
     values ($1, 'proven.example', now(), now() + interval '1 day') on conflict (tenant_id, name) do nothing`,
    [id]
  )
  await sql.query(
    `insert into sessions (tenant_id, id, user_id, expires_at, provider_id, provider_at, authenticated_at)
     values ($1, uuid_v7(), $2, now() + interval '1 day', $3, now(), '-infinity')`,
    [id, owner.id, provider_id]
  )
  return { body: { provider_id } }
}

async function plantBreakGlass({ sql }: Pick<World, 'sql'>, { id }: Pick<Side, 'id'>, owner: Person): Promise<void> {
  await sql.query('update users set mfa_enabled_at = now() where id = $1', [owner.id])
  await sql.query('update memberships set break_glass = true where tenant_id = $1 and user_id = $2', [id, owner.id])
}

const breakGlassOwner = async (world: World, side: Side): Promise<Partial<Call>> => {
  const owner = await world.plantPerson(side, 'owner')
  await plantBreakGlass(world, side, owner)
  return { params: { user_id: owner.id } }
}

const ofAnother = [
  {
    title: 'a domain of another agency',
    ...notFound,
    likeNothing: byNewOwner(() => ({ params: { name: 'nowhere.example' } })),
    call: byNewOwner((world) => plantDomain(world, world.b))
  }
]

export const domainPolicies: Record<string, Policy> = {
  listDomains: read('owner', { paged: true }),
  addDomain: {
    access: 'owner',
    status: 201,
    audited: true,
    creates: true,
    make: passing(() => ({ body: { name: `${fresh('domain')}.example` } })),
    also: [
      {
        title: 'a domain that another agency has',
        call: byNewOwner(async (world) => {
          const { params } = await plantDomain(world, world.b)
          return { body: params }
        })
      }
    ]
  },
  getDomain: { ...read('owner', { make: passing(plantDomain) }), excesses: ofAnother },
  verifyDomain: { access: 'owner', status: 200, audited: true, make: passing(plantDomain), excesses: ofAnother },
  removeDomain: { access: 'owner', status: 204, audited: true, make: passing(plantDomain), excesses: ofAnother },

  getEnforcement: read('owner'),
  enforceProvider: {
    access: 'owner',
    status: 200,
    audited: true,
    make: passing(plantProvider),
    excesses: [
      {
        title: 'the provider of another agency',
        ...notFound,
        likeNothing: byNewOwner(() => ({ body: { provider_id: unknownId } })),
        call: byNewOwner((world) => plantProvider(world, world.b, world.b.people.owner))
      }
    ]
  },
  endEnforcement: {
    access: 'owner',
    status: 204,
    audited: true,
    make: passing(async (world, side, caller) => {
      const { body } = await plantProvider(world, side, caller)
      await world.sql.query('update identity_providers set enforced_from = now() where id = $1', [body.provider_id])
      return {}
    })
  },
  addBreakGlassOwner: {
    access: 'owner',
    status: 204,
    objects: { user_id: 'member' },
    audited: true,
    make: passing(async (world, side) => {
      const owner = await world.plantPerson(side, 'owner')
      await world.sql.query('update users set mfa_enabled_at = now() where id = $1', [owner.id])
      return { params: { user_id: owner.id } }
    })
  },
  removeBreakGlassOwner: {
    access: 'owner',
    status: 204,
    objects: { user_id: 'member' },
    audited: true,
    make: passing(breakGlassOwner)
  }
}

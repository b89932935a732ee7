import { domainRecord } from '../src/tenancy/domain-names.ts'
import { fresh, inFirst, notFound, type Policy, read, standing } from './authz-calls.ts'
import type { Side, World } from './isolation-world.ts'

/*
 * The entries of test/authz-policy.ts for the domains of agencies.
 */

/** A domain of the agency that is not proven yet. Its record is in DNS. */
async function plantDomain(
  { sql, dns }: World,
  { id, canary }: Side,
  name = `${fresh(canary)}.example`
): Promise<{ params: { name: string } }> {
  const { rows } = await sql.query('insert into tenant_domains (tenant_id, name) values ($1, $2) returning challenge', [
    id,
    name
  ])
  const [{ challenge }] = rows
  const record = domainRecord(name, challenge)
  dns.answers.set(record.name, [record.value])
  return { params: { name } }
}

const ofAnother = [
  {
    title: 'a domain of another agency',
    ...notFound,
    likeNothing: inFirst('owner', () => ({ params: { name: 'nowhere.example' } })),
    call: inFirst('owner', (world) => plantDomain(world, world.b))
  }
]

export const domainPolicies: Record<string, Policy> = {
  listDomains: read('owner', { paged: true }),
  addDomain: {
    access: 'owner',
    status: 201,
    audited: true,
    creates: true,
    make: standing(() => ({ body: { name: `${fresh('domain')}.example` } })),
    also: [
      {
        title: 'a domain that another agency has',
        call: inFirst('owner', async (world) => {
          const { params } = await plantDomain(world, world.b, `${fresh('domain')}.example`)
          return { body: params }
        })
      }
    ]
  },
  getDomain: { ...read('owner', { make: standing(plantDomain) }), excesses: ofAnother },
  verifyDomain: { access: 'owner', status: 200, audited: true, make: standing(plantDomain), excesses: ofAnother },
  removeDomain: { access: 'owner', status: 204, audited: true, make: standing(plantDomain), excesses: ofAnother }
}

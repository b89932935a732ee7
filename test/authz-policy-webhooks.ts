import { v7 as uuidv7 } from 'uuid'
import { type Call, fresh, inFirst, notFound, type Policy, passing, read, standing } from './authz-calls.ts'
import type { Side, World } from './isolation-world.ts'
import { unknownId } from './requests.ts'

/*
 * The entries of test/authz-policy.ts for webhooks. Nothing is sent in the matrix: the webhooks want a type that does not occur,
 * and are paused.
 */

/** The only webhook of the agency. */
async function plantWebhook({ app, sql }: World, side: Side): Promise<{ id: string }> {
  const id = uuidv7()
  const { secret, key_id } = app.webhookSecrets.seal(id, 'a secret')
  await sql.query('delete from webhook_endpoints where tenant_id = $1', [side.id])
  await sql.query(
    `insert into webhook_endpoints (tenant_id, id, url, description, event_types, secret, key_id, busy_until)
     values ($1, $2, 'https://' || $3 || '.example/hook', $3, '{tenant.purged}', $4, $5, 'infinity')`,
    [side.id, id, side.canary, secret, key_id]
  )
  return { id }
}

/** A webhook with two deliveries. */
async function plantDelivery(world: World, side: Side): Promise<{ id: string; delivery_id: string }> {
  const { id } = await plantWebhook(world, side)
  const { rows } = await world.sql.query(
    `insert into webhook_deliveries (tenant_id, endpoint_id, cause, event_id, event_type, event_at, position)
     select $1, $2, 'event', uuid_v7(), 'tenant.purged', now(), n from generate_series(1, 2) as n returning id`,
    [side.id, id]
  )
  const delivery_id: string = rows[0].id
  await world.sql.query(
    `insert into webhook_attempts (tenant_id, delivery_id, number, started_at, duration_ms, status, reply)
     values ($1, $2, 1, now(), 1, 200, $3)`,
    [side.id, delivery_id, side.canary]
  )
  return { id, delivery_id }
}

const ofAnother = (body?: Record<string, unknown>) => [
  {
    title: 'a webhook of another agency',
    ...notFound,
    likeNothing: inFirst('owner', () => ({ params: { id: unknownId }, ...(body && { body }) })),
    call: inFirst('owner', async (world) => ({ params: await plantWebhook(world, world.b), ...(body && { body }) }))
  }
]
const deliveryOfAnother = [
  {
    title: 'a delivery of another agency',
    ...notFound,
    likeNothing: inFirst('owner', () => ({ params: { id: unknownId, delivery_id: unknownId } })),
    call: inFirst('owner', async (world) => ({ params: await plantDelivery(world, world.b) }))
  },
  {
    title: 'a delivery of another agency by a webhook of its own',
    ...notFound,
    likeNothing: inFirst('owner', async (world) => ({
      params: { ...(await plantWebhook(world, world.a)), delivery_id: unknownId }
    })),
    call: inFirst('owner', async (world) => {
      const { delivery_id } = await plantDelivery(world, world.b)
      return { params: { ...(await plantWebhook(world, world.a)), delivery_id } }
    })
  }
]

const of =
  (plant: (world: World, side: Side) => Promise<Record<string, string>>, body?: () => Record<string, unknown>) =>
  async (world: World, side: Side): Promise<Partial<Call>> => ({
    params: await plant(world, side),
    ...(body && { body: body() })
  })
const aDay = () => ({ from: new Date(Date.now() - 86_400_000).toISOString(), to: new Date().toISOString() })
const change = { access: 'admin', status: 200, audited: true } as const

export const webhookPolicies: Record<string, Policy> = {
  listWebhooks: read('admin', {
    make: standing(async (world, side) => {
      await plantWebhook(world, side)
      return {}
    })
  }),
  getWebhook: read('admin', { make: standing(of(plantWebhook)), excesses: ofAnother() }),
  createWebhook: {
    ...change,
    status: 201,
    make: passing(async ({ sql }, side) => {
      await sql.query('delete from webhook_endpoints where tenant_id = $1', [side.id])
      return { body: { url: `https://${fresh('hook')}.example`, event_types: ['tenant.purged'] } }
    })
  },
  updateWebhook: {
    ...change,
    make: passing(of(plantWebhook, () => ({ description: fresh('renamed') }))),
    excesses: ofAnother({ description: 'Mine' })
  },
  deleteWebhook: { ...change, status: 204, make: passing(of(plantWebhook)), excesses: ofAnother() },
  rotateWebhookSecret: { ...change, make: passing(of(plantWebhook)), excesses: ofAnother() },
  testWebhook: {
    ...{ access: 'admin', status: 202, creates: true },
    make: passing(of(plantWebhook)),
    excesses: ofAnother()
  },
  listWebhookDeliveries: read('admin', {
    paged: true,
    make: standing(of(async (world, side) => ({ id: (await plantDelivery(world, side)).id }))),
    excesses: ofAnother()
  }),
  getWebhookDelivery: read('admin', { make: standing(of(plantDelivery)), excesses: deliveryOfAnother }),
  replayWebhookDelivery: {
    ...{ ...change, status: 202, creates: true },
    make: passing(of(plantDelivery)),
    excesses: deliveryOfAnother
  },
  replayWebhook: {
    ...{ ...change, status: 202, creates: true },
    make: passing(of(plantWebhook, aDay)),
    excesses: ofAnother(aDay())
  }
}

import fc from 'fast-check'
import t from 'tap'
import type { Role } from '../src/auth/roles.ts'
import { post, type Reply, send } from './harness.ts'
import { createWorld, type Side, type World } from './isolation-world.ts'
import { unknownId } from './requests.ts'
import { agree, checkTwins, Divergence, type Twins } from './twin-models.ts'

/*
 * Two agencies whose people, invitations and names change: twin-models.ts runs the commands.
 */

type Model = {
  side: Side
  name: string
  members: Map<string, Role>
  /** The people that a command can change, in a fixed order. */
  people: string[]
  invitations: Map<string, { email: string; role: string }>
  events: Map<string, number>
}

type Command =
  | { kind: 'invite'; email: string; role: string }
  | { kind: 'revoke' | 'resend'; which: number; foreign: boolean }
  | { kind: 'change'; which: number; role: Role; foreign: boolean }
  | { kind: 'remove'; which: number; foreign: boolean }
  | { kind: 'rename'; name: string }
  | { kind: 'compare' }

// few values, and the same for both agencies, so that they collide
const email = fc.constantFrom('ada@example.com', 'bob@example.com', 'cy@example.com', 'dee@example.com')
const which = fc.nat({ max: 5 })
const foreign = fc.boolean()
const role = fc.constantFrom('admin' as const, 'member' as const, 'viewer' as const)
const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('invite' as const), email, role }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constantFrom('revoke' as const, 'resend' as const), which, foreign }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('change' as const), which, role, foreign }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('remove' as const), which, foreign }) },
  {
    weight: 2,
    arbitrary: fc.record({ kind: fc.constant('rename' as const), name: fc.constantFrom('One', 'Two', 'Three') })
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('compare' as const) }) }
)
async function modelOf(world: World, name: string): Promise<Model> {
  const side = await world.plantSide(name)
  const { rows } = await world.sql.query('select id, email, role from invitations where tenant_id = $1', [side.id])
  const people = Object.values(side.people)
  return {
    side,
    name: `The ${side.slug} agency`,
    members: new Map(people.map((person) => [person.id, person.role])),
    people: people.filter((person) => person.role !== 'owner').map(({ id }) => id),
    invitations: new Map(rows.map(({ id, ...rest }) => [id, rest])),
    events: new Map([['canary.planted', 3]])
  }
}

async function run(world: World, mine: Model, theirs: Model, command: Command): Promise<void> {
  const { side } = mine
  const ask = (request: object): Promise<Reply> => {
    const headers = { authorization: `Bearer ${side.people.owner.token}` }
    return send(world.app, side.host, { ...request, headers })
  }
  const act = async (method: string, url: string, payload?: object) => {
    const reply = await ask({ method, url: `/api/v1${url}`, ...(payload && { payload }) })
    return { status: reply.statusCode, body: reply.body === '' ? undefined : reply.json() }
  }
  const count = (action: string) => mine.events.set(action, (mine.events.get(action) ?? 0) + 1)
  const label = JSON.stringify(command)

  switch (command.kind) {
    case 'invite': {
      const { kind: _, ...invitation } = command
      const taken = [...mine.invitations.values()].some((each) => each.email === invitation.email)
      const { status, body } = await ask(post('/invitations', invitation)).then((reply) => ({
        status: reply.statusCode,
        body: reply.json()
      }))
      agree(label, status, taken ? 409 : 201)
      if (taken) return
      mine.invitations.set(body.id, invitation)
      count('invitation.created')
      return
    }
    case 'revoke':
    case 'resend': {
      const id = [...(command.foreign ? theirs : mine).invitations.keys()].at(command.which) ?? unknownId
      const known = mine.invitations.has(id)
      const revoke = command.kind === 'revoke'
      const { status } = await (revoke ? act('DELETE', `/invitations/${id}`) : act('POST', `/invitations/${id}/resend`))
      agree(label, status, known ? (revoke ? 204 : 202) : 404)
      if (!known) return
      if (revoke) mine.invitations.delete(id)
      count(revoke ? 'invitation.revoked' : 'invitation.resent')
      return
    }
    case 'change':
    case 'remove': {
      const id = (command.foreign ? theirs : mine).people.at(command.which) ?? unknownId
      const before = mine.members.get(id)
      if (command.kind === 'remove') {
        const { status } = await act('DELETE', `/members/${id}`)
        agree(label, status, before ? 204 : 404)
        if (before && mine.members.delete(id)) count('member.removed')
        return
      }
      const { status, body } = await act('PATCH', `/members/${id}`, { role: command.role })
      agree(label, status, before ? 200 : 404)
      if (!before) return
      agree(label, body.role, command.role)
      mine.members.set(id, command.role)
      if (before !== command.role) count('member.role_changed')
      return
    }
    case 'rename': {
      const { status, body } = await act('PATCH', '/tenant', { name: command.name })
      agree(label, [status, body.name], [200, command.name])
      if (mine.name !== command.name) count('tenant.updated')
      mine.name = command.name
      return
    }
    case 'compare': {
      const { body: tenant } = await act('GET', '/tenant')
      const expected = [side.id, side.slug, mine.name, mine.members.size]
      agree('the agency', [tenant.id, tenant.slug, tenant.name, tenant.usage.members], expected)
      const { body: members } = await act('GET', '/members?limit=100')
      const rolesById = members.data.map((member: { user_id: string; role: string }) => [member.user_id, member.role])
      agree('the members', rolesById.sort(), [...mine.members].sort())
      const { body: invitations } = await act('GET', '/invitations?limit=100')
      const offers = invitations.data.map(({ id, email, role }: Record<string, string>) => [id, email, role])
      agree(
        'the invitations',
        offers.sort(),
        [...mine.invitations].map(([id, { email, role }]) => [id, email, role]).sort()
      )
      const { body: events } = await act('GET', '/audit-events?limit=100')
      const counts = new Map<string, number>()
      for (const { action } of events.data) counts.set(action, (counts.get(action) ?? 0) + 1)
      agree('the audit log', [...counts].sort(), [...mine.events].sort())
    }
  }
}

const twins = (world: World): Twins<Model, Command> => ({
  command,
  length: { minLength: 5, maxLength: 25 },
  compare: { kind: 'compare' },
  start: async () => [await modelOf(world, 'E'), await modelOf(world, 'F')],
  run: (mine, theirs, command) => run(world, mine, theirs, command)
})

t.test('two agencies at the same time stay what each of them is by itself', async (t) => {
  const world = await createWorld(t)
  const seed = Date.now() & 0x7fffffff
  t.comment(`seed ${seed}`)
  const { details, steps, failure } = await checkTwins(twins(world), {
    seed,
    numRuns: 40,
    interruptAfterTimeLimit: 20_000
  })
  t.equal(failure, undefined)
  t.ok(details.numRuns >= 3, `${details.numRuns} programs`)
  t.comment(`${details.numRuns} programs, ${steps} requests and comparisons, seed ${seed}`)
})

t.test('and a hole between them would be seen', async (t) => {
  const world = await createWorld(t, { plant: 'alter table invitations disable row level security' })
  const { details } = await checkTwins(twins(world), {
    seed: 1,
    numRuns: 40,
    interruptAfterTimeLimit: 15_000,
    endOnFailure: true
  })
  t.ok(details.failed)
  t.ok(details.errorInstance instanceof Divergence, String(details.errorInstance))
})

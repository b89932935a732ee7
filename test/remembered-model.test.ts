import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { type DatabaseUrls, withClient } from './databases.ts'
import { addMember, createTenant, createTestDatabase, password, post, send, startApp, type TestApp } from './harness.ts'
import { needsRedis, startRedis } from './redis.ts'
import { type Actor, type Ask, createHistory, type Target, Violation, type Way } from './remembered-history.ts'

// bounded in time: how old an answer may be
// rehearsal: random reads and changes over several processes

/*
 * People of two agencies change names and read them, at random, at two processes with one database. No answer is older than a
 * second, or than the own change, or of another agency.
 */

type World = { apps: TestApp[]; actors: Actor[]; history: ReturnType<typeof createHistory> }

async function createWorld(t: Test, database: DatabaseUrls, env: Record<string, string>): Promise<World> {
  const settings = { READ_MEMORY: 'on', DATABASE_POOL: '4', ...env }
  const apps = [await startApp(t, settings, database), await startApp(t, settings, database)]
  const app = apps[0] as TestApp
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await addMember(app, rival, acme.owner.id, 'member')
  await addMember(app, acme, rival.owner.id, 'member')
  const actors: Actor[] = []
  const hosts = new Map<string, string>()
  // the owner of each agency, who also is a member of the other
  for (const tenant of [acme, rival]) {
    for (const { owner } of [tenant, tenant === acme ? rival : acme]) {
      const reply = await send(app, tenant.host, post('/auth/login', { email: owner.email, password }))
      const { access_token: token } = reply.json()
      actors.push({ token, person: owner.id, agency: tenant.id })
      hosts.set(token, tenant.host)
    }
  }
  const first = [acme, rival].flatMap(({ id, slug, owner }) => [
    [owner.id, `Owner of ${slug}`],
    [id, `The ${slug} agency`]
  ])
  return { apps, actors, history: createHistory(askOf(apps, hosts), Object.fromEntries(first)) }
}

function askOf(apps: TestApp[], hosts: Map<string, string>): Ask {
  return async (process, { method, url, token, headers = {}, body }) => {
    const reply = await send(apps[process] as TestApp, hosts.get(token) as string, {
      method: method as 'GET',
      url,
      headers: { authorization: `Bearer ${token}`, ...headers },
      ...(body && { payload: body })
    })
    return {
      status: reply.statusCode,
      body: reply.statusCode === 304 ? {} : reply.json(),
      etag: reply.headers.etag as string | undefined
    }
  }
}

type Command = { kind: 'write' | 'read' | 'wait'; process: number; target: Target; way: Way; ms: number }
const command: fc.Arbitrary<Command> = fc.record({
  kind: fc.constantFrom('write', 'read', 'read', 'read', 'wait'),
  process: fc.nat({ max: 1 }),
  target: fc.constantFrom('person', 'agency'),
  way: fc.constantFrom('plain', 'plain', 'plain', 'own tag', 'other tag', 'no-cache'),
  ms: fc.nat({ max: 150 })
})
const script = fc.array(command, { minLength: 10, maxLength: 40 })

/** Runs a script for each actor, all at once. Only owners write: names have one writer. */
async function play({ actors, history }: World, scripts: Command[][]): Promise<void> {
  await Promise.all(
    actors.map(async (actor, index) => {
      for (const { kind, process, target, way, ms } of scripts[index] ?? []) {
        if (kind === 'wait') await sleep(ms)
        else if (kind === 'write' && index % 2 === 0) await history.write(actor, process, target)
        else await history.read(actor, process, target, index % 2 === 0 || way !== 'own tag' ? way : 'plain')
      }
    })
  )
}

async function check(t: Test, world: World, numRuns: number): Promise<void> {
  const { history } = world
  const before = world.apps.map((app) => app.readMemory.stats().hits)
  const scripts = fc.tuple(script, script, script, script)
  await fc.assert(
    fc.asyncProperty(scripts, (each) => play(world, each)),
    { numRuns, endOnFailure: true, includeErrorInReport: true }
  )
  const hits = world.apps.map((app, index) => app.readMemory.stats().hits - (before[index] as number))
  t.ok(
    hits.every((each) => each > 5),
    `${history.counts.reads} reads, ${hits} from memory, ${history.counts.writes} changes`
  )
  t.equal(history.counts.unanswered, 0)
}

t.test('with Redis, and while it is frozen', needsRedis, async (t) => {
  const redis = await startRedis(t)
  const world = await createWorld(t, await createTestDatabase(t), { REDIS_URL: redis.url })
  await check(t, world, 5)
  redis.signal('SIGSTOP')
  await check(t, world, 5)
  redis.signal('SIGCONT')
})

t.test('without Redis, with a feed that is halted, and with a change that commits late', async (t) => {
  const database = await createTestDatabase(t)
  const world = await createWorld(t, database, {})
  await check(t, world, 5)

  // the feed of one process is halted for longer than the bound, and again
  const { gate } = world.apps[1] as TestApp
  const { query } = gate
  let reads = 0
  gate.query = async (scope, statement, values) => {
    const rows = await query(scope, statement, values)
    if (statement.name === 'changes_unseen' && reads++ % 3 === 0) await sleep(1700)
    return rows
  }
  const before = (world.apps[1] as TestApp).readMemory.stats()
  await check(t, world, 5)
  const after = (world.apps[1] as TestApp).readMemory.stats()
  t.ok(after.questions - before.questions > 20, 'the database is asked instead')
  gate.query = query

  // another session holds the lowest number while the others go on
  await withClient(database.postgres, async (client) => {
    await client.query('begin')
    await client.query('select pg_current_xact_id()')
    await check(t, world, 3)
    await client.query('commit')
  })
})

/** What a process may do wrong, and the words of the violation. */
const holes: Record<string, { found: RegExp; make(app: TestApp): void }> = {
  'the feed is not heeded': {
    found: /old: /,
    make: ({ readMemory }) => {
      readMemory.forget = () => {}
    }
  },
  'a process does not heed what it has written': {
    found: /not what this process wrote/,
    make: ({ readMemory }) => {
      readMemory.wrote = () => {}
    }
  },
  'any tag will do': {
    found: /not the newest/,
    make: ({ readMemory }) => {
      const { read } = readMemory
      readMemory.read = ({ method }, asked, ask) => read({ method, headers: {} } as never, asked, ask)
    }
  },
  'the agency is left out': {
    found: /was shown to another/,
    make: ({ readMemory }) => {
      const { read } = readMemory
      readMemory.read = (request, asked, ask) => {
        const tenant_id = (asked.scope.user_id ?? '').replace(/^./, '0')
        return read(
          request,
          { ...asked, scope: { ...asked.scope, tenant_id }, values: { ...asked.values, tenant_id } },
          ask
        )
      }
    }
  }
}

t.test('each hole is found', async (t) => {
  const world = await createWorld(t, await createTestDatabase(t), {})
  const [app] = world.apps as [TestApp]
  const { history } = world
  const whole = { ...app.readMemory }
  const [owner, , , elsewhere] = world.actors as [Actor, Actor, Actor, Actor]
  for (const [title, { found, make }] of Object.entries(holes)) {
    Object.assign(app.readMemory, whole).forgetAll()
    make(app)
    const attempt = async () => {
      for (let round = 0; round < 5; round++) {
        for (const target of ['person', 'agency'] as const) {
          // in the other process first, then in this one
          for (const process of [1, 0]) {
            await history.read(owner, 0, target, 'plain')
            await history.read(elsewhere, 0, target, 'plain')
            await history.write(owner, process, target)
            if (process === 0) await history.read(owner, 0, target, 'plain')
            await history.read(owner, 0, target, 'own tag')
            await history.read(owner, 0, target, 'no-cache')
          }
          await history.read(owner, 0, target, 'plain')
          await history.write(owner, 1, target)
          await sleep(1100)
          await history.read(owner, 0, target, 'plain')
        }
      }
    }
    await t.rejects(attempt(), { message: found, constructor: Violation }, title)
  }
})

import fc from 'fast-check'
import t, { type Test } from 'tap'
import { complete, createAuthenticator, enroll, forgetUsedCodes, totp } from './factors.ts'
import {
  allRows,
  createTenant,
  password,
  post,
  send,
  startApp,
  type Tenant,
  type TestApp,
  type Tokens
} from './harness.ts'
import { reset, verifyAll } from './mailed-links.ts'
import { addProvider, exchange, linkAt, type ScriptedProvider, signInAt, startScriptedProvider } from './providers.ts'
import { me } from './requests.ts'
import { agree, checkTwins, Divergence, type Twins } from './twin-models.ts'

/*
 * Two agencies whose providers have the same issuer and the same subjects, and a model of how the owner of each comes in:
 * twin-models.ts runs the commands. A difference means that one agency has a part in the sign-in of the other.
 */

type Model = {
  tenant: Tenant
  provider: { key: string; at: ScriptedProvider }
  /** The session of the owner. */
  tokens: Tokens
  word: string
  identity: { id: string; sub: string } | undefined
  secret: string | undefined
  enforced: boolean
  /** What the audit log of the agency has about the owner. */
  events: Map<string, number>
}

type Command =
  | { kind: 'link' | 'through'; sub: string }
  | { kind: 'unlink'; foreign: boolean }
  | { kind: 'factor' | 'enforce' | 'compare' | 'password' }
  | { kind: 'reset'; word: string }

// few values, and the same for both agencies, so that they collide
const sub = fc.constantFrom('one', 'two')
const word = fc.constantFrom('the first of the words', 'another of the words')
const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('link' as const), sub }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('through' as const), sub }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('unlink' as const), foreign: fc.boolean() }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('reset' as const), word }) },
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constantFrom('factor' as const, 'enforce' as const, 'compare' as const, 'password' as const)
    })
  }
)

type World = { app: TestApp; at: ScriptedProvider }

const signIn = ({ app }: World, { tenant, word }: Model) =>
  send(app, tenant.host, post('/auth/login', { email: tenant.owner.email, password: word }))

/** Opens a session of the owner by the password, with the factor if there is one. */
async function open(world: World, mine: Model): Promise<Tokens> {
  const reply = (await signIn(world, mine)).json()
  if (mine.secret === undefined) return reply
  await forgetUsedCodes(world.app, mine.tenant.owner.id)
  return (await complete(world.app, reply.mfa_token, createAuthenticator(mine.secret).code())).json()
}

async function run(world: World, mine: Model, theirs: Model, command: Command): Promise<void> {
  const { app } = world
  const { tenant, provider } = mine
  const label = `${tenant.slug} ${JSON.stringify(command)}`
  const as = (options: object) => tenant.with(mine.tokens.access_token, options)
  const count = (action: string) => mine.events.set(action, (mine.events.get(action) ?? 0) + 1)
  const code = async () => {
    await forgetUsedCodes(app, tenant.owner.id)
    return createAuthenticator(mine.secret as string).code()
  }

  switch (command.kind) {
    case 'link': {
      const reply = await linkAt(app, provider, tenant, { sub: command.sub }, mine.tokens)
      const refusal = mine.identity?.sub === command.sub ? 'identity_taken' : 'conflict'
      agree(label, [reply.statusCode, reply.json().code], mine.identity ? [409, refusal] : [201, undefined])
      if (mine.identity) return
      mine.identity = { id: reply.json().id, sub: command.sub }
      count('user.identity_linked')
      return
    }
    case 'unlink': {
      const id = (command.foreign ? theirs : mine).identity?.id
      if (id === undefined) return
      const reply = await as({ method: 'DELETE', url: `${me}/identities/${id}` })
      agree(label, reply.statusCode, mine.identity?.id === id ? 204 : 404)
      if (mine.identity?.id !== id) return
      mine.identity = undefined
      count('user.identity_unlinked')
      return
    }
    case 'factor': {
      if (mine.secret === undefined) {
        mine.secret = (await enroll(app, tenant, mine.tokens)).secret
        count('user.mfa_enabled')
        return
      }
      const reply = await as({ method: 'DELETE', url: totp, payload: { code: await code() } })
      agree(label, reply.statusCode, 204)
      mine.secret = undefined
      count('user.mfa_removed')
      return
    }
    case 'enforce': {
      const from = mine.enforced ? 'null' : 'now()'
      await allRows(app.database, `update identity_providers set enforced_from = ${from} where id = $1`, [provider.key])
      mine.enforced = !mine.enforced
      return
    }
    case 'reset': {
      // whoever must come in through the provider could not open another session with the new password
      if (mine.enforced) return
      const [link] = await allRows(
        app.database,
        `insert into account_links (user_id, purpose, email, password_version, expires_at)
         select id, 'reset', email, password_version, now() + interval '1 hour' from users where id = $1
         on conflict (user_id, purpose) do update set id = excluded.id, password_version = excluded.password_version,
           used_at = null returning id`,
        [tenant.owner.id]
      )
      const token = app.oneTimeTokens.issue('reset', { tenant_id: tenant.id, id: link.id, generation: 1 })
      agree(label, (await reset(app, token, command.word)).statusCode, 204)
      agree(label, (await as({ url: me })).json().code, 'session_revoked')
      mine.word = command.word
      count('user.password_reset')
      mine.tokens = await open(world, mine)
      return
    }
    case 'password': {
      const { code } = (await signIn(world, mine)).json()
      agree(label, code, mine.enforced ? 'provider_required' : mine.secret ? 'mfa_required' : undefined)
      return
    }
    case 'through': {
      const back = await signInAt(app, provider, tenant.slug, { sub: command.sub })
      const known = mine.identity?.sub === command.sub
      agree(label, back.error, known ? undefined : 'identity_not_linked')
      if (!known) return
      const reply = await exchange(app, back.code, back.code_verifier)
      agree(label, reply.json().code, mine.secret ? 'mfa_required' : undefined)
      if (mine.secret) return
      const person = (await tenant.with(reply.json().access_token, { url: me })).json()
      agree(label, [person.id, person.tenant_id], [tenant.owner.id, tenant.id])
      return
    }
    case 'compare': {
      const person = (await as({ url: me })).json()
      agree('the person', [person.id, person.mfa_enabled], [tenant.owner.id, mine.secret !== undefined])
      const identities = (await as({ url: `${me}/identities` })).json().data
      const ids = identities.map(({ id, provider: key }: { id: string; provider: string }) => [id, key])
      agree('the identities', ids, mine.identity ? [[mine.identity.id, provider.key]] : [])
      const rows = await allRows(
        app.database,
        `select action, count(*)::int as n from audit_events where tenant_id = $1 and action = any ($2) group by action order by action`,
        [
          tenant.id,
          [
            'user.identity_linked',
            'user.identity_unlinked',
            'user.mfa_enabled',
            'user.mfa_removed',
            'user.password_reset'
          ]
        ]
      )
      agree(
        'the audit log',
        rows.map(({ action, n }) => [action, n]),
        [...mine.events].sort()
      )
    }
  }
}

let count = 0

async function modelOf({ app, at }: World, name: string): Promise<Model> {
  const tenant = await createTenant(app, `${name}-${++count}`)
  const provider = { key: await addProvider(tenant, at.issuer), at }
  const { tokens } = tenant.owner
  const none = { identity: undefined, secret: undefined, enforced: false }
  return { tenant, provider, tokens, word: password, ...none, events: new Map() }
}

async function start(t: Test, plant?: string): Promise<World> {
  const app = await startApp(t)
  if (plant) await allRows(app.database, plant)
  return { app, at: await startScriptedProvider(t) }
}

const twins = (world: World): Twins<Model, Command> => ({
  command,
  length: { minLength: 4, maxLength: 14 },
  compare: { kind: 'compare' },
  async start() {
    const both: [Model, Model] = [await modelOf(world, 'e'), await modelOf(world, 'f')]
    await verifyAll(world.app)
    return both
  },
  run: (mine, theirs, command) => run(world, mine, theirs, command)
})

t.test('how the people of two agencies come in does not depend on the other agency', async (t) => {
  const world = await start(t)
  const seed = Date.now() & 0x7fffffff
  t.comment(`seed ${seed}`)
  const { details, steps, failure } = await checkTwins(twins(world), {
    seed,
    numRuns: 8,
    interruptAfterTimeLimit: 40_000
  })
  t.equal(failure, undefined)
  t.ok(steps >= 20, `${steps} commands`)
  t.comment(`${details.numRuns} programs, ${steps} commands, seed ${seed}`)
})

t.test('and an identity that were good in the other one would be seen', async (t) => {
  const world = await start(
    t,
    `create or replace function find_user_identity(of_agency boolean, issuer text, subject text)
       returns table (id uuid, user_id uuid, email text, password_version integer, disabled_at timestamptz)
       language sql stable security definer rows 1
     begin atomic
       select i.id, i.user_id, u.email, u.password_version, u.disabled_at
       from user_identities i join users u on u.id = i.user_id
       where i.issuer = find_user_identity.issuer and i.subject = find_user_identity.subject limit 1;
     end`
  )
  const lucky: [Command | null, Command | null][] = [
    [{ kind: 'link', sub: 'one' }, null],
    [null, { kind: 'through', sub: 'one' }]
  ]
  const parameters = { seed: 1, numRuns: 8, examples: [[lucky]], endOnFailure: true } as fc.Parameters<[unknown]>
  const { details } = await checkTwins(twins(world), parameters)
  t.ok(details.failed)
  t.ok(details.errorInstance instanceof Divergence, String(details.errorInstance))
})

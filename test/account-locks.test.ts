import { randomBytes, randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'kysely'
import t, { type Test } from 'tap'
import { v7 as uuidv7 } from 'uuid'
import { queryIn, type TenantTransaction } from '../db/gate/gate.ts'
import { systemScope } from '../db/gate/gate-query.ts'
import { confirmEmailChange, requestEmailChange, useAccountLink } from '../db/queries/accounts/links.ts'
import {
  prepareAccountMail,
  queueAgencyNews,
  queueAgencyNotice,
  requestPasswordReset,
  requestVerification
} from '../db/queries/accounts/mails.ts'
import { operateAccount } from '../db/queries/accounts/operation.ts'
import { endMyIdentity } from '../db/queries/directory.ts'
import { deleteMember, lockRoles } from '../db/queries/members.ts'
import { openSession } from '../db/queries/sessions.ts'
import { isLinkable, linkIdentity, touchIdentity, unlinkIdentity } from '../db/queries/sign-in/identities.ts'
import { addPasskey, myPasskeys, removePasskey } from '../db/queries/sign-in/passkeys.ts'
import { countFactorFailure, endOtherSessions, myFactors, removeFactors } from '../db/queries/sign-in/second-factors.ts'
import { changePassword, endUserSessions, lockPerson, verifyEmail } from '../db/queries/users.ts'
import { deleteProvider, lockProvider } from '../routes/identity-providers/queries.ts'
import type { LinkPurpose } from '../src/auth/one-time-tokens.ts'
import { withClient } from './databases.ts'
import { allRows, createTenant, eventually, startApp, type Tenant, type TestApp } from './harness.ts'

/*
 * Transactions that change one account at the same moment wait for each other, and none is given up because of a deadlock. The
 * gate repeats such a transaction, so that no client sees it: PostgreSQL counts them.
 */

/** How many deadlocks there were. Connections report what they have counted when they end, so all of them end first. */
async function deadlocksIn(app: TestApp): Promise<number> {
  await app.close()
  const others = 'select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()'
  await eventually(async () => (await allRows(app.database, others)).length === 0)
  const counted = 'select deadlocks::int from pg_stat_database where datname = current_database()'
  const [{ deadlocks }] = await allRows(app.database, counted)
  return deadlocks
}

/** A transaction pauses after it has locked a row to change it, so that others come in between. */
async function slowDown(app: TestApp): Promise<void> {
  const tables = [
    'users',
    'second_factors',
    'account_links',
    'account_mails',
    'user_identities',
    'memberships',
    'identity_providers'
  ]
  await withClient(app.database.postgres, async (client) => {
    await client.query(`
      create function pause() returns trigger language plpgsql as $$
      begin
        perform pg_sleep(0.001 + random() * 0.004);
        return case tg_op when 'DELETE' then old else new end;
      end $$;
      grant execute on function pause() to public`)
    for (const table of tables) {
      await client.query(`create trigger pause before update or delete on ${table}
        for each row execute function pause()`)
    }
  })
}

type World = { app: TestApp; acme: Tenant; person: string; email: string; provider: string }

/** A transaction of the person, as a request makes one. */
const inScope = <T>({ app, acme, person }: World, work: (trx: TenantTransaction) => Promise<T>): Promise<T> =>
  app.gate.transaction({ tenant_id: acme.id, user_id: person, request: '' }, work)
const rowsOf = ({ app }: World, text: string, values: unknown[]) => allRows(app.database, text, values)

const hash = { password_hash: 'x', pepper_id: 'x' }
const token_seconds = 60

async function versionOf(trx: TenantTransaction): Promise<number> {
  const { rows } = await sql<{ version: number }>`
    select password_version as version from users where id = current_user_id()`.execute(trx)
  return rows[0]?.version ?? 0
}
const opening = async (trx: TenantTransaction, { acme, person }: World, provider_id: string | null) =>
  queryIn(trx, openSession, {
    ...{ tenant_id: acme.id, user_id: person, session_seconds: 3600, token_seconds, mfa_at: new Date() },
    ...{
      password_version: await versionOf(trx),
      action: 'session.opened',
      by: null,
      provider_id,
      authenticated_at: null,
      key_thumbprint: null
    }
  })
async function linkOf(world: World, purpose: LinkPurpose) {
  const text = 'select id from account_links where user_id = $1 and purpose = $2'
  const [link] = await rowsOf(world, text, [world.person, purpose])
  return { id: (link?.id ?? randomUUID()) as string, purpose }
}
async function identityOf(world: World, own: boolean): Promise<string> {
  const text =
    'select id from user_identities where user_id = $1 and (agency_id is not null) = $2 order by random() limit 1'
  const [identity] = await rowsOf(world, text, [world.person, own])
  return identity?.id ?? randomUUID()
}
const link = (world: World, own: boolean) =>
  inScope(world, async (trx) => {
    const { email, provider } = world
    if (own && !(await isLinkable(trx, { email, provider }))) return
    const issuer = own ? 'https://login.acme.example' : 'https://github.com'
    const identity = { id: uuidv7(), provider: own ? provider : 'github', own, issuer, subject: randomUUID(), email }
    await linkIdentity(trx, identity)
  })
const unlink = async (world: World, own: boolean) => {
  const id = await identityOf(world, own)
  await inScope(world, async (trx) => {
    const { outcome } = await unlinkIdentity(trx, id)
    if (outcome === 'unlinked') await endOtherSessions(trx, undefined, token_seconds)
  })
}
const provide = (world: World) =>
  rowsOf(
    world,
    `insert into identity_providers (tenant_id, id, place, name, issuer, client_id, client_secret, key_id, enforced_from)
     values ($1, $2, 1, 'Login', 'https://login.acme.example', 'x', 'x', 'x', null) on conflict do nothing`,
    [world.acme.id, world.provider]
  )
const join = (world: World) =>
  rowsOf(world, "insert into memberships (tenant_id, user_id, role) values ($1, $2, 'member') on conflict do nothing", [
    world.acme.id,
    world.person
  ])

/** Its people are told, after the memberships of all owners were locked. */
const tell = (world: World) =>
  inScope(world, async (trx) => {
    await lockRoles(trx, [world.acme.owner.id])
    await queueAgencyNews(trx, 'provider_demanded', { provider: 'Login' })
    await queueAgencyNotice(trx, 'domain_lost', { domain: 'x.example' }, ['owner', 'member'])
  })

/** What routes do in their transactions, by the functions that they do it by. */
const acts: Record<string, (world: World) => Promise<unknown>> = {
  async 'a mail is sent'(world) {
    const text = `select id from account_mails where (user_id = $1 or user_id is null) and sent_at is null
      and dropped_at is null order by random() limit 2`
    for (const { id } of await rowsOf(world, text, [world.person])) {
      const limits = { most: 0, window_seconds: 60, most_notices: 20, reset_seconds: 60, verification_seconds: 60 }
      await world.app.gate.query(systemScope, prepareAccountMail, { id, ...limits })
    }
  },
  async 'a new password is asked for'(world) {
    const values = { email: world.email, mailbox: world.email, tenant_id: null, detail: null }
    await world.app.gate.query(systemScope, requestPasswordReset, values)
  },
  'the address is to be verified': (world) =>
    inScope(world, (trx) => queryIn(trx, requestVerification, { mailbox: 'x@x.example', tenant_id: world.acme.id })),
  'another address is asked for': (world) =>
    inScope(world, async (trx) => {
      if (!(await lockPerson(trx, await versionOf(trx)))) return
      const mailboxes = { old_mailbox: 'old@x.example', new_mailbox: 'new@x.example' }
      await requestEmailChange(trx, { email: 'new@x.example', ...mailboxes, tenant_id: world.acme.id, seconds: 600 })
    }),
  async 'another address is confirmed'(world) {
    const links = [await linkOf(world, 'change_from'), await linkOf(world, 'change_to')]
    await inScope(world, async (trx) => {
      for (const each of links) await confirmEmailChange(trx, each)
    })
    await rowsOf(world, 'update users set email = $2 where id = $1', [world.person, world.email])
  },
  async 'the password is reset'(world) {
    const mailed = await linkOf(world, 'reset')
    await inScope(world, async (trx) => {
      const version = await useAccountLink(trx, mailed)
      if (version === undefined || !(await changePassword(trx, world.person, version, hash))) return
      await verifyEmail(trx, world.person)
      await removeFactors(trx, { actor_id: world.person, token_seconds })
      await endUserSessions(trx, null, token_seconds)
    })
  },
  'the password is changed': (world) =>
    inScope(world, async (trx) => {
      if (await changePassword(trx, world.person, await versionOf(trx), hash)) {
        await endUserSessions(trx, null, token_seconds)
      }
    }),
  'an identity is linked': (world) => link(world, false),
  'an identity is unlinked': (world) => unlink(world, false),
  'an identity of the agency is linked': (world) => link(world, true),
  'an identity of the agency is unlinked': (world) => unlink(world, true),
  async 'a sign-in by an identity of the agency'(world) {
    const id = await identityOf(world, true)
    await inScope(world, async (trx) => {
      if (await touchIdentity(trx, id, null)) await opening(trx, world, world.provider)
    })
  },
  'a sign-in by a code': (world) =>
    inScope(world, async (trx) => {
      const [factor] = await queryIn(trx, myFactors, {})
      if (factor?.id) await queryIn(trx, countFactorFailure, { id: factor.id })
      await opening(trx, world, null)
    }),
  'a passkey is added': (world) =>
    inScope(world, async (trx) => {
      const passkey = { id: uuidv7(), name: 'x', challenge_id: uuidv7(), credential_id: randomBytes(16), counter: 0 }
      const device = {
        ...{ public_key: randomBytes(8), transports: [], backed_up: false },
        device_type: 'multi_device'
      } as const
      const recovery = { factor_id: randomUUID(), codes: [randomBytes(8)] }
      await addPasskey(trx, { ...passkey, ...device }, recovery, { actor_id: world.person, token_seconds })
    }),
  'a passkey is removed': (world) =>
    inScope(world, async (trx) => {
      const [passkey] = await queryIn(trx, myPasskeys, {})
      await removePasskey(trx, passkey?.id ?? randomUUID(), { actor_id: world.person, token_seconds })
    }),
  'an agency tells its people': tell,
  async 'a member leaves'(world) {
    await inScope(world, (trx) => deleteMember(trx, world.person))
    await join(world)
  },
  async 'a provider is removed'(world) {
    await inScope(world, async (trx) => {
      if (await lockProvider(trx, world.provider)) await deleteProvider(trx, world.provider, token_seconds)
    })
    await provide(world)
  },
  async 'an operator acts'(world) {
    for (const act of ['disable', 'enable', 'sign_out'] as const) {
      await world.app.gate.query({ ...systemScope, user_id: world.person }, operateAccount, {
        ...{ user_id: world.person, act, token_seconds }
      })
    }
  }
}

async function start(t: Test): Promise<World> {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  const { id: person, email } = rival.owner
  await allRows(
    app.database,
    "insert into tenant_domains (tenant_id, name, verified_at) values ($1, 'rival.example', now())",
    [acme.id]
  )
  await allRows(app.database, 'update users set email_verified_at = now()')
  const world = { app, acme, person, email, provider: randomUUID() }
  await provide(world)
  await join(world)
  await slowDown(app)
  return world
}

t.test('each pair of what changes an account runs at once without a deadlock', async (t) => {
  const world = await start(t)
  const titles = Object.keys(acts)
  const pairs = titles.flatMap((one, index) => titles.slice(index).map((other) => [one, other] as const))
  for (const [one, other] of pairs) {
    // the second of each begins a little later, so that each comes first once
    const runs = [one, other, other, one].map(async (title, index) => {
      await sleep(index * 2)
      await acts[title]?.(world)
    })
    for (const { reason } of (await Promise.allSettled(runs)) as { reason?: unknown }[]) {
      if (reason !== undefined) t.fail(`${one} and ${other}: ${reason}`)
    }
  }
  t.equal(await deadlocksIn(world.app), 0)
})

t.test('an agency tells its people while the account of an owner ends', async (t) => {
  const world = await start(t)
  const { app, acme, person, email } = world
  const rounds = 12
  for (let round = 0; round < rounds; round++) {
    await rowsOf(
      world,
      `with someone as (
         insert into users (id, email, name, email_verified_at) values ($1, $2, 'Somebody', now()) on conflict do nothing)
       insert into memberships (tenant_id, user_id, role) values ($3, $1, 'owner')
       on conflict (tenant_id, user_id) do update set role = 'owner'`,
      [person, email, acme.id]
    )
    await rowsOf(world, 'delete from memberships where user_id = $1 and tenant_id <> $2', [person, acme.id])
    const runs = [
      inScope(world, (trx) => queryIn(trx, endMyIdentity, { token_seconds })),
      ...[0, 3, 6, 9].map(async (ms) => {
        await sleep(ms)
        await tell(world)
      })
    ]
    for (const { reason } of (await Promise.allSettled(runs)) as { reason?: unknown }[]) {
      if (reason !== undefined) t.fail(`round ${round}: ${reason}`)
    }
    t.strictSame(await rowsOf(world, 'select id from users where id = $1', [person]), [], 'the account has ended')
  }
  t.equal(await deadlocksIn(app), 0)
})

t.test('a deadlock would be counted', async (t) => {
  const { app, acme, person } = await start(t)
  let held = 0
  const meet = (first: string, second: string) =>
    withClient(app.database.postgres, async (client) => {
      await client.query('begin')
      await client.query(`select from ${first} for update`)
      held++
      await eventually(() => held === 2)
      await client.query(`select from ${second} for update`)
      await client.query('commit')
    })
  const [membership, user] = [`memberships where user_id = '${person}'`, `users where id = '${acme.owner.id}'`]
  const outcomes = await Promise.allSettled([meet(membership, user), meet(user, membership)])
  t.strictSame(outcomes.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
  t.equal(await deadlocksIn(app), 1)
})

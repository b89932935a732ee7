import t, { type Test } from 'tap'
import { createPasswords, parameters } from '../src/auth/passwords.ts'
import { createKeyRing } from '../src/keys.ts'
import {
  allRows,
  createTenant,
  password,
  post,
  type Reply,
  send,
  startApp,
  type Tenant,
  type TestApp
} from './harness.ts'
import { assertSame, compare, isSame, type Kinds, rankSumProbability, roundsOf } from './timing.ts'
import { fingerprint } from './tokens.ts'

// bounded in time: that replies take the same time whoever has an address
// rehearsal: thousands of sign-ins, which take the same time for everybody

/*
 * What the time of a reply tells about an address: nothing. Of each kind of account 400 requests are compared, each about
 * another account.
 *
 * Passwords are hashed at a twentieth of the real cost, for all alike, and not in the subprocess of lower priority, which
 * a busy machine leaves waiting. What is shown stays the same, which is that each kind causes the same work. The
 * comparison is the stricter for it: a long hash would hide what else a kind might do.
 */
Object.assign(parameters, { memoryCost: 1024 })

const n = 400
const wrong = 'not the right password'
/** Members of an agency. The password of all is right, but of those who come in by a provider only. */
const kinds = ['verified', 'unverified', 'disabled', 'by a provider only', 'with a second factor'] as const
const addressOf = (kind: string, i: number) => `${kind.replaceAll(' ', '-')}-${i}@acme.example`

/** Makes as many accounts of each kind as may be asked about. */
async function addAccounts({ database }: TestApp, tenant: Tenant): Promise<void> {
  const text = `
    with made as (
      insert into users (id, email, name, password_hash, pepper_id, email_verified_at, disabled_at)
      select gen_random_uuid(), replace($1, ' ', '-') || '-' || i || '@acme.example', 'Somebody',
        case when $1 = 'by a provider only' then null else o.password_hash end,
        case when $1 = 'by a provider only' then null else o.pepper_id end,
        case when $1 = 'unverified' then null else now() end,
        case when $1 = 'disabled' then now() end
      from generate_series(1, $2::int) i, users o where o.id = $3
      returning id
    ), members as (
      insert into memberships (tenant_id, user_id, role) select $4, id, 'member' from made
    ), identities as (
      insert into user_identities (id, user_id, provider, issuer, subject)
      select gen_random_uuid(), id, 'google', 'https://accounts.google.com', id::text from made
      where $1 = 'by a provider only'
    )
    insert into second_factors (user_id, id, secret, key_id, confirmed_at)
    select id, gen_random_uuid(), '\\x00', 'key', now() from made where $1 = 'with a second factor'`
  for (const kind of kinds) await allRows(database, text, [kind, roundsOf(n), tenant.owner.id, tenant.id])
}

/** One request about an address of each kind, whose reply must have the status. */
function ask(
  kinds: readonly string[],
  status: number,
  request: (email: string, i: number, kind: string) => Promise<Reply>
) {
  const kindOf = (kind: string) => async (i: number) => {
    const reply = await request(addressOf(kind, i), i, kind)
    if (reply.statusCode !== status) throw new Error(`${kind}: ${reply.statusCode} ${reply.body}`)
    return reply
  }
  return Object.fromEntries(kinds.map((kind) => [kind, kindOf(kind)]))
}

/** Asserts that a client gets one answer for all of them. */
async function assertOneAnswer(t: Test, requests: Record<string, (i: number) => Promise<Reply>>): Promise<void> {
  const answers = await Promise.all(Object.values(requests).map((request) => request(roundsOf(n))))
  for (const answer of answers) t.strictSame(fingerprint(answer), fingerprint(answers[0] as Reply))
}

t.test('the measure finds a difference, and none where there is none', (t) => {
  const times = Array.from({ length: n }, (_, i) => 20 + i / 40)
  const others = times.map((time, i) => time + (i % 2 === 0 ? 0.01 : -0.01))
  t.ok(rankSumProbability(times, others) > 0.9)
  const later = others.map((time) => time + 5)
  t.ok(rankSumProbability(times, later) < 1e-6, 'five milliseconds, in times that spread over ten')
  t.ok(rankSumProbability(later, times) < 1e-6)
  t.ok(rankSumProbability([1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]) < 0.01)
  t.end()
})

t.test('no time tells who has an address', async (t) => {
  const app = await startApp(t)
  Object.assign(app.passwords, await createPasswords(createKeyRing(app.config.passwordPepper, 'pepper')))
  const acme = await createTenant(app, 'acme')
  await addAccounts(app, acme)
  const headers = { 'x-request-id': 'same' }
  const everybody = ['unknown', ...kinds]
  const signIns = ask(everybody, 401, (email, _, kind) =>
    send(app, acme.host, post('/auth/login', { email, password: kind === 'disabled' ? password : wrong }, headers))
  )

  await t.test('at sign-in', async (t) => {
    await assertOneAnswer(t, signIns)
    await assertSame(t, signIns, n)
  })
  await t.test('at sign-in, where a missing hash would', async (t) => {
    const { verify } = app.passwords
    const hole = async (...args: Parameters<typeof verify>) => args[1] !== undefined && verify(...args)
    Object.assign(app.passwords, { verify: hole })
    const { unknown, verified } = signIns as Kinds
    const [comparison] = await compare({ unknown, verified } as Kinds, 100)
    Object.assign(app.passwords, { verify })
    t.notOk(comparison && isSame(comparison), JSON.stringify(comparison))
  })
  await t.test('when a password is forgotten', async (t) => {
    const requests = ask(everybody, 202, (email) =>
      send(app, acme.host, post('/auth/password/forgot', { email }, headers))
    )
    await assertOneAnswer(t, requests)
    await assertSame(t, requests, n)
  })
  await t.test('when somebody changes their own address to it', async (t) => {
    const requests = ask(['unknown', 'verified'], 202, (email) =>
      acme.send(post('/users/me/email', { email, password }, headers))
    )
    await assertOneAnswer(t, requests)
    await assertSame(t, requests, n)
  })

  // a registration says by its answer that an address is taken. Its time says no more than that
  const register = (email: string, slug: string) =>
    send(
      app,
      'localhost',
      post('/auth/register', { tenant: { name: 'New', slug }, name: 'New', email, password }, headers)
    )
  await t.test('what account it is that has an address, when somebody registers with it', async (t) => {
    const requests = ask(['verified', 'by a provider only'], 409, (email, i) => register(email, `new-${i}`))
    await assertOneAnswer(t, requests)
    await assertSame(t, requests, n)
  })
  await t.test('and whether any does, when the slug is taken', async (t) => {
    const requests = ask(['unknown', 'verified'], 409, (email) => register(email, 'acme'))
    await assertOneAnswer(t, requests)
    await assertSame(t, requests, n)
  })
})

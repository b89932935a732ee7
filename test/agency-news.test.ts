import t from 'tap'
import { queueAgencyNotice } from '../db/queries/accounts/mails.ts'
import { agencyNewsKinds } from '../src/mail/agency-news.ts'
import { withClient } from './databases.ts'
import { enroll } from './factors.ts'
import { addMember, allRows, createTenant, mailsTo, startApp, type Tenant, type TestApp } from './harness.ts'
import { forgot, mailsAreSent, subjectsTo, verifyAll } from './mailed-links.ts'

/*
 * Members are told by mail what their agency demands of them: a second factor, or its provider.
 */

const demand = (tenant: Tenant, mfa_required_from: string | null) =>
  tenant.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings: { mfa_required_from } } })
const demands = 'acme agency demands a second factor'

/** While the mail server is away. */
async function held(app: TestApp, work: () => Promise<void>): Promise<void> {
  const hold = `create function hold() returns trigger language plpgsql as $$ begin
      new.due_at := now() + interval '1 hour'; return new; end $$;
    create trigger hold before insert on account_mails for each row execute function hold()`
  await allRows(app.database, hold)
  await work()
  await allRows(app.database, 'drop trigger hold on account_mails; drop function hold()')
}
async function sendHeld(app: TestApp): Promise<void> {
  await allRows(app.database, 'update account_mails set due_at = now() where sent_at is null')
  await mailsAreSent(app)
}
const queue = (app: TestApp, kind: string, user_id: string, agency: Tenant) =>
  allRows(app.database, 'insert into account_mails (kind, user_id, agency_id, detail) values ($1, $2, $3, $4)', [
    ...[kind, user_id, agency.id],
    '{"provider": "Login", "from": "2031-01-01T00:00:00Z", "person": "a@b.example", "domain": "b.example"}'
  ])
/** What an agency tells about itself. */
const fromAgency = [...agencyNewsKinds, 'break_glass_used', 'domain_lost']

t.test('a demand of a second factor is told to all members', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const acme = await createTenant(app, 'acme')
  const member = await createTenant(app, 'member')
  const stranger = await createTenant(app, 'stranger')
  const former = await createTenant(app, 'former')
  await addMember(app, acme, member.owner.id, 'viewer')
  await addMember(app, acme, former.owner.id, 'viewer')
  await verifyAll(app)
  const unverified = await createTenant(app, 'unverified')
  await addMember(app, acme, unverified.owner.id, 'member')
  await enroll(app, acme)
  await mailsAreSent(app)
  const { email } = member.owner
  const news = (address: string) => subjectsTo(app, address).filter((subject) => subject.includes('second factor'))
  const before = news(acme.owner.email).length

  t.equal((await demand(acme, '2031-02-03T04:05:00Z')).statusCode, 200)
  await mailsAreSent(app)
  const [mail, ...others] = mailsTo(app, email).filter(({ subject }) => subject.includes(demands))
  t.match(mail?.text, 'From February 3, 2031 at 4:05 AM UTC on, signing in to The acme agency takes a second factor')
  t.strictSame(others, [], 'one mail')
  t.equal(news(acme.owner.email).length, before + 1, 'the owner too')
  t.strictSame(news(stranger.owner.email), [], 'nobody else')
  t.strictSame(news(unverified.owner.email), [], 'no address that was never proven')
  t.equal((await demand(acme, '2031-02-03T04:05:00Z')).statusCode, 200)
  await mailsAreSent(app)
  t.equal(news(email).length, 1, 'nothing has changed')

  // while the mail server is away
  await held(app, async () => {
    for (const from of ['2032-01-01T00:00:00Z', '2033-01-01T00:00:00Z', null]) await demand(acme, from)
  })
  const waiting = 'select kind from account_mails where user_id = $1 and sent_at is null'
  const kinds = await allRows(app.database, waiting, [member.owner.id])
  t.strictSame(kinds, [{ kind: 'factor_demand_ended' }], 'what is out of date does not wait')
  await allRows(app.database, 'delete from memberships where user_id = $1 and tenant_id = $2', [
    ...[former.owner.id, acme.id]
  ])
  // one that was tried before there was a newer one
  await allRows(
    app.database,
    `insert into account_mails (id, kind, user_id, agency_id, detail, attempts)
     values ('01800000-0000-7000-8000-000000000000', 'factor_demanded', $1, $2, '{"from": "2032-01-01T00:00:00Z"}', 1)`,
    [member.owner.id, acme.id]
  )
  await sendHeld(app)
  t.strictSame(
    news(email).slice(1),
    ['The acme agency no longer demands a second factor'],
    'the newest, and none that is out of date'
  )
  t.equal(news(former.owner.email).length, 1, 'who has left learns no more')

  await acme.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings: { locale: 'pt-BR' } } })
  await demand(acme, '2031-02-03T04:05:00Z')
  await mailsAreSent(app)
  t.match(mailsTo(app, email).at(-1), { subject: 'The acme agency exige a verificação em duas etapas' })
})

t.test(
  'what agencies tell and what happens to an account are counted apart, and the account comes first',
  async (t) => {
    const app = await startApp(t, { LOG_LEVEL: 'info' })
    const acme = await createTenant(app, 'acme')
    await verifyAll(app)
    const { id, email } = acme.owner
    const sent = (kind: string, agency_id: string | null = null) =>
      allRows(
        app.database,
        `insert into account_mails (kind, user_id, agency_id, sent_at)
       select $1, $2, $3, now() from generate_series(1, 20)`,
        [kind, id, agency_id]
      )
    await sent('password_changed')
    for (const kind of fromAgency) {
      const count = subjectsTo(app, email).length
      await queue(app, kind, id, acme)
      await queue(app, 'totp_removed', id, acme)
      await mailsAreSent(app)
      t.equal(subjectsTo(app, email).length, count + 1, `${kind} is sent, and a notice that is one too many is not`)
    }
    const rival = await createTenant(app, 'rival')
    await addMember(app, rival, id, 'owner')
    for (const [many, one, other] of [
      ['factor_demanded', 'provider_demanded', 'domain_lost'],
      ['break_glass_used', 'domain_lost', 'provider_demanded']
    ] as const) {
      await allRows(app.database, 'delete from account_mails')
      await sent(many, acme.id)
      const count = subjectsTo(app, email).length
      await queue(app, one, id, acme)
      await mailsAreSent(app)
      t.equal(subjectsTo(app, email).length, count, `${one} is one too many after twenty of ${many}`)
      await queue(app, other, id, acme)
      await queue(app, one, id, rival)
      await queue(app, 'totp_removed', id, acme)
      await mailsAreSent(app)
      const subjects = subjectsTo(app, email).slice(count)
      t.equal(subjects.length, 3, 'of other kinds it is not, nor of another agency')
      t.ok(subjects.includes('The authenticator app of your account was removed'))
      t.ok(subjects.some((subject) => subject.includes('rival agency')))
    }

    await allRows(app.database, 'delete from account_mails')
    const before = app.logLines.length
    const many = Array.from({ length: 30 }, (_, n) => `n${n}@many.example`)
    await allRows(
      app.database,
      `with people as (
       insert into users (id, email, name, email_verified_at) select gen_random_uuid(), each, 'Somebody', now()
       from unnest($1::text[]) each returning id
     ), members as (
       insert into memberships (tenant_id, user_id, role) select $2, id, 'viewer' from people returning user_id
     )
     insert into account_mails (kind, user_id, agency_id, detail, due_at)
     select 'provider_demanded', user_id, $2, '{"provider": "Acme login"}', now() - interval '1 hour' from members`,
      [many, acme.id]
    )
    await forgot(app, email)
    await mailsAreSent(app)
    const mails = app.logLines.slice(before).flatMap((line) => JSON.parse(line).mail?.subject ?? [])
    t.equal(mails.length, 31)
    t.match(mails[0], /^Set a new password/, 'who waits for a mail does not wait for thirty others')
  }
)

t.test('what an agency tells goes out in no name but its own', async (t) => {
  const app = await startApp(t, { LOG_LEVEL: 'info' })
  const rival = await createTenant(app, 'rival')
  const acme = await createTenant(app, 'acme')
  const { id, email } = acme.owner
  await addMember(app, rival, id, 'owner')
  await verifyAll(app)
  await enroll(app, rival)
  await mailsAreSent(app)
  const count = subjectsTo(app, email).length
  await held(app, async () => {
    t.equal((await demand(rival, '2031-01-01T00:00:00Z')).statusCode, 200)
    for (const kind of fromAgency.filter((kind) => kind !== 'factor_demanded')) await queue(app, kind, id, rival)
    await queue(app, 'password_changed', id, rival)
  })
  const ended = await rival.send({ method: 'DELETE', url: '/api/v1/tenant', payload: { slug: 'rival' } })
  t.equal(ended.statusCode, 202)
  await sendHeld(app)
  t.strictSame(subjectsTo(app, email).slice(count), ['Your password was changed'], 'only what concerns the account')
})

t.test('an agency demands something ten times a day at most, and may always end it', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const rival = await createTenant(app, 'rival')
  await enroll(app, acme)
  await enroll(app, rival)
  for (let year = 2031; year < 2041; year++) {
    t.equal((await demand(acme, `${year}-01-01T00:00:00Z`)).statusCode, 200)
  }
  t.match((await demand(acme, '2041-01-01T00:00:00Z')).json(), { status: 429, code: 'rate_limited' })
  t.equal((await demand(acme, '2040-01-01T00:00:00Z')).statusCode, 200, 'nothing has changed')
  t.equal((await demand(acme, null)).statusCode, 200)
  t.equal((await demand(rival, '2031-01-01T00:00:00Z')).statusCode, 200, 'another agency')
})

t.test('telling people waits for no account that is about to end', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const leaver = await createTenant(app, 'leaver')
  const stays = await createTenant(app, 'stays')
  await addMember(app, acme, leaver.owner.id, 'member')
  await addMember(app, acme, stays.owner.id, 'member')
  await verifyAll(app)
  await enroll(app, acme)
  const told = async (kind: string) => {
    const text = 'select user_id from account_mails where kind = $1 and agency_id = $2 order by user_id'
    return (await allRows(app.database, text, [kind, acme.id])).map(({ user_id }) => user_id)
  }
  await withClient(app.database.postgres, async (client) => {
    await client.query('begin')
    await client.query('select from users where id = $1 for update', [leaver.owner.id])
    t.equal((await demand(acme, '2031-01-01T00:00:00Z')).statusCode, 200)
    await app.gate.transaction({ tenant_id: acme.id, user_id: acme.owner.id, request: '' }, (trx) =>
      queueAgencyNotice(trx, 'domain_lost', { domain: 'acme.example' }, ['owner', 'member'])
    )
    await client.query('rollback')
  })
  const others = [acme.owner.id, stays.owner.id].sort()
  t.strictSame(await told('factor_demanded'), others, 'the members whose account is not locked')
  t.strictSame(await told('domain_lost'), others)
})

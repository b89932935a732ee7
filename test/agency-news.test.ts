import t from 'tap'
import { agencyNewsKinds } from '../src/mail/agency-news.ts'
import { enroll } from './factors.ts'
import { addMember, allRows, createTenant, mailsTo, startApp, type Tenant } from './harness.ts'
import { forgot, mailsAreSent, subjectsTo, verifyAll } from './mailed-links.ts'

/*
 * Members are told by mail what their agency demands of them: a second factor, or its provider.
 */

const demand = (tenant: Tenant, mfa_required_from: string | null) =>
  tenant.send({ method: 'PATCH', url: '/api/v1/tenant', payload: { settings: { mfa_required_from } } })
const demands = 'acme agency demands a second factor'

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
  const later = "update account_mails set due_at = now() + interval '1 hour' where sent_at is null"
  const hold = `create function hold() returns trigger language plpgsql as $$ begin
      new.due_at := now() + interval '1 hour'; return new; end $$;
    create trigger hold before insert on account_mails for each row execute function hold()`
  await allRows(app.database, later)
  await allRows(app.database, hold)
  for (const from of ['2032-01-01T00:00:00Z', '2033-01-01T00:00:00Z', null]) await demand(acme, from)
  await allRows(app.database, 'drop trigger hold on account_mails')
  await allRows(app.database, 'delete from memberships where user_id = $1 and tenant_id = $2', [
    ...[former.owner.id, acme.id]
  ])
  await allRows(app.database, 'update account_mails set due_at = now() where sent_at is null')
  await mailsAreSent(app)
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
    const sent = (kind: string) =>
      allRows(
        app.database,
        `insert into account_mails (kind, user_id, agency_id, sent_at)
       select $1, $2, gen_random_uuid(), now() from generate_series(1, 20)`,
        [kind, id]
      )
    const queue = (kind: string) =>
      allRows(app.database, 'insert into account_mails (kind, user_id, agency_id, detail) values ($1, $2, $3, $4)', [
        ...[kind, id, acme.id, '{"provider": "Acme login", "from": "2031-01-01T00:00:00Z"}']
      ])
    await sent('password_changed')
    for (const kind of agencyNewsKinds) {
      const count = subjectsTo(app, email).length
      await queue(kind)
      await queue('totp_removed')
      await mailsAreSent(app)
      t.equal(subjectsTo(app, email).length, count + 1, `${kind} is sent, and a notice that is one too many is not`)
    }
    await allRows(app.database, 'delete from account_mails')
    await sent('factor_demanded')
    const count = subjectsTo(app, email).length
    await queue('provider_demanded')
    await queue('totp_removed')
    await mailsAreSent(app)
    t.strictSame(subjectsTo(app, email).slice(count), ['The authenticator app of your account was removed'])

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

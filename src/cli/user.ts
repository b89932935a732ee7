import type { TenantGate } from '../../db/gate/gate.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { requestPasswordReset } from '../../db/queries/accounts/mails.ts'
import { operateAccount, operateIdentity } from '../../db/queries/accounts/operation.ts'
import {
  type AccountRow,
  findAccount,
  type MyTenant,
  mySessionsPage,
  myTenantsByUse
} from '../../db/queries/directory.ts'
import { type MyIdentity, myIdentities } from '../../db/queries/sign-in/identities.ts'
import { myPasskeys } from '../../db/queries/sign-in/passkeys.ts'
import { type FactorRow, factorsOf, myFactors, removeFactors } from '../../db/queries/sign-in/second-factors.ts'
import { revocationSeconds } from '../auth/token-life.ts'
import { mailboxOf, normalizeEmail } from '../mail/mailboxes.ts'
import { maxUuid } from '../uuids.ts'
import { createOperatorCommand, endsSomething } from './command.ts'
import { operate, printable, Refusal } from './operator.ts'

/** More sessions than this are not listed; their number is shown. */
const maxListed = 100

const outcomes = {
  disable: { done: () => 'is disabled', already: 'is disabled already' },
  enable: { done: () => 'is enabled', already: 'is not disabled' },
  sign_out: { done: (sessions: number) => `is signed out of ${sessions} sessions`, already: 'has no open session' }
}

export const command = createOperatorCommand(
  'user',
  'Shows and changes the account of a person. A change takes effect in every process within a second.'
)

command
  .command('show <e-mail>')
  .description('Shows the account, its ways to sign in, its agencies and its open sessions.')
  .action(show)

command
  .command('reset <e-mail>')
  .description('Sends the person a mail to set a new password. Nobody else sees or sets one.')
  .action(reset)

endsSomething(command.command('disable <e-mail>'), 'ends all tokens of a person')
  .description('Ends the tokens of a person everywhere, and refuses their sign-ins.')
  .action((email: string) => change(email, 'disable'))

command
  .command('enable <e-mail>')
  .description('Lets a person work again.')
  .action((email: string) => change(email, 'enable'))

endsSomething(command.command('sign-out <e-mail>'), 'ends all sessions of a person')
  .description('Ends every session of a person, in every agency.')
  .action((email: string) => change(email, 'sign_out'))

endsSomething(command.command('remove-factor <e-mail>'), 'removes all second factors of a person')
  .description('Removes the second factors of a person who has lost them, passkeys too, and ends their sessions.')
  .action(removeSecondFactor)

endsSomething(command.command('unlink <e-mail> <identity-id>'), 'unlinks a sign-in of a person')
  .description('Unlinks a sign-in at a provider, which `show` lists, and ends the sessions of the person.')
  .action(unlink)

function show(given: string): Promise<never> {
  return operate(async (gate, config) => {
    const { id, email, ...account } = await requireAccount(gate, given)
    const scope = scopeOf(id)
    const [factor] = await gate.query(scope, myFactors, {})
    const identities = await gate.query(scope, myIdentities, {})
    const passkeys = await gate.query(scope, myPasskeys, {})
    const tenants = await gate.query(scope, myTenantsByUse, {})
    const sessions = await gate.query(scope, mySessionsPage, {
      session_id: null,
      idle_seconds: config.refreshTokenTtl,
      after_id: maxUuid,
      limit: maxListed + 1
    })
    const more = sessions.length > maxListed
    const text = [
      `id ${id}`,
      `e-mail ${email}, ${account.email_verified_at === null ? 'not verified' : 'verified'}`,
      account.disabled_at === null ? 'not disabled' : `disabled since ${account.disabled_at.toISOString()}`,
      `password ${account.password_hash === null ? 'not set' : 'set'}, wrong passwords in a row: ${account.failures}`,
      `second factor ${describeFactors(factor)}`,
      `passkeys: ${passkeys.length}`,
      ...passkeys.map(({ id, name, last_used_at }) => `  ${id}: ${printable(name)}, ${lastUsed(last_used_at)}`),
      `linked sign-ins: ${identities.length}`,
      ...identities.map((identity) => `  ${describeIdentity(identity, tenants)}`),
      `agencies: ${tenants.length}`,
      ...tenants.map(({ slug, role, status }) => `  ${slug}: ${role}${status === 'active' ? '' : `, ${status}`}`),
      `open sessions: ${more ? `more than ${maxListed}` : sessions.length}`,
      ...sessions.slice(0, maxListed).map((session) => {
        const when = `  ${session.tenant_slug}: ${lastUsed(session.last_used_at)}`
        return [when, session.ip, printable(session.user_agent)].filter(Boolean).join(', ')
      })
    ].join('\n')
    const { password_hash, email_verified_at, disabled_at, failures } = account
    const factors = factor ? factorsOf(factor) : []
    const person = {
      id,
      email,
      email_verified_at,
      disabled_at,
      password_set: password_hash !== null,
      failures,
      factors,
      passkeys: passkeys.map(({ id, name, last_used_at }) => ({ id, name, last_used_at })),
      identities
    }
    return { text, data: { ...person, tenants, sessions: sessions.slice(0, maxListed) }, onStderr: true }
  })
}

function reset(given: string): Promise<never> {
  return operate(async (gate) => {
    const { email, disabled_at } = await requireAccount(gate, given)
    if (disabled_at !== null) throw new Refusal(`${email} is disabled, and gets no mail`)
    const detail = JSON.stringify({ by: 'operator' })
    await gate.query(systemScope, requestPasswordReset, { email, mailbox: mailboxOf(email), tenant_id: null, detail })
    return `a mail to ${email} is queued`
  })
}

function change(given: string, act: keyof typeof outcomes): Promise<never> {
  return operate(async (gate, config) => {
    const { id, email } = await requireAccount(gate, given)
    const token_seconds = revocationSeconds(config)
    const [result] = await gate.query(systemScope, operateAccount, { user_id: id, act, token_seconds })
    const changed = result?.changed ?? 0
    return `${email} ${changed > 0 ? outcomes[act].done(changed) : outcomes[act].already}`
  })
}

function removeSecondFactor(given: string): Promise<never> {
  return operate(async (gate, config) => {
    const { id, email } = await requireAccount(gate, given)
    const token_seconds = revocationSeconds(config)
    const removed = await gate.transaction(scopeOf(id), (trx) => removeFactors(trx, { actor_id: null, token_seconds }))
    return `${email} ${removed ? 'has no second factor any more, and is signed out everywhere' : 'has no second factor'}`
  })
}

function unlink(given: string, identity_id: string): Promise<never> {
  return operate(async (gate, config) => {
    const { id, email } = await requireAccount(gate, given)
    const known = (await gate.query(scopeOf(id), myIdentities, {})).some((identity) => identity.id === identity_id)
    const values = { user_id: id, identity_id, token_seconds: revocationSeconds(config) }
    const [result] = known ? await gate.query(systemScope, operateIdentity, values) : []
    if (result?.outcome !== 'unlinked') throw new Refusal(`${email} has no linked sign-in with this id`)
    return `the sign-in of ${email} is unlinked, and they are signed out everywhere`
  })
}

function lastUsed(at: Date | null): string {
  return at === null ? 'never used' : `last used ${at.toISOString()}`
}

function describeIdentity(
  { id, provider, agency_id, name, email, last_used_at }: MyIdentity,
  tenants: MyTenant[]
): string {
  const agency = tenants.find((tenant) => tenant.id === agency_id)
  const at = agency_id === null ? provider : `${printable(name)} of ${agency?.slug ?? agency_id} only`
  return [`${id}: ${at}`, printable(email), lastUsed(last_used_at)].filter(Boolean).join(', ')
}

function describeFactors(row: FactorRow | undefined): string {
  if (!row || factorsOf(row).length === 0) return 'not set up'
  const codes = `recovery codes left: ${row.recovery_codes.length}`
  if (row.passkeys === 0) return `set up, ${codes}`
  return `set up, ${row.confirmed ? 'an app and ' : ''}passkeys: ${row.passkeys}, ${codes}`
}

/** The scope of a person in no agency. */
function scopeOf(user_id: string) {
  return { tenant_id: null, user_id, request: '' }
}

async function requireAccount(gate: TenantGate, given: string) {
  const email = normalizeEmail(given)
  const [row] = await gate.query(systemScope, findAccount, { email })
  const { id, ...account } = row as AccountRow
  if (id === null) throw new Refusal(`nobody has the address ${email}`)
  return { ...account, id, email }
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()

import { sql } from 'kysely'
import { statement } from '../../gate/statement.ts'

/**
 * Disables or enables a person, or ends all their sessions, for the operator. Each of the person's agencies gets an audit
 * event without an actor. `changed` counts persons, or sessions.
 */
export const operateAccount = statement(
  'operate_account',
  (_, $: { user_id: string; act: 'disable' | 'enable' | 'sign_out'; token_seconds: number }) => sql<{
    changed: number
  }>`
  select operate_account(${$.user_id}, ${$.act}, make_interval(secs => ${$.token_seconds}))::int as changed`,
  { writes: true }
)

/**
 * Unlinks an identity of a person and ends all their sessions, for the operator. The agencies that had to do with it get an audit
 * event without an actor, and the person a mail. `unknown`: the person has no such identity.
 */
export const operateIdentity = statement(
  'operate_identity',
  (_, $: { user_id: string; identity_id: string; token_seconds: number }) => sql<{ outcome: 'unlinked' | 'unknown' }>`
  select operate_identity(${$.user_id}, ${$.identity_id}, make_interval(secs => ${$.token_seconds})) as outcome`,
  { writes: true }
)

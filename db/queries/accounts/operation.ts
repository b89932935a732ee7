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

import t from 'tap'
import type { Statement } from '../db/gate/statement.ts'
import { listMembers } from '../db/queries/members.ts'
import { auditEventsBy, auditLinesBy } from '../routes/audit-events/queries.ts'
import { filesBy } from '../routes/files/queries.ts'
import { listInvitations } from '../routes/invitations/queries.ts'
import { maxUuid, nilUuid } from '../src/uuids.ts'
import { withClient } from './databases.ts'
import { allRows, createTenant, startApp } from './harness.ts'

/*
 * A page far into a list costs as much as the first one, with the one plan that PostgreSQL keeps for all agencies and pages. The
 * cost is the number of blocks that are read, not the time.
 */

const rows = 20_000
const limit = 26

type Plan = { 'Shared Hit Blocks': number; 'Shared Read Blocks': number; 'Actual Rows': number }

t.test('a list of many rows', async (t) => {
  const app = await startApp(t)
  const acme = await createTenant(app, 'acme')
  const fill = (text: string, ...more: string[]) => allRows(app.database, text, [acme.id, ...more])
  await allRows(
    app.database,
    `insert into users (id, email, name) select uuid_v7(), 'p' || i || '@many.example', 'P' from generate_series(1, ${rows}) i`
  )
  await fill(
    `insert into memberships (tenant_id, user_id, role) select $1, id, 'member' from users where email like '%@many.example'`
  )
  await fill(
    `insert into invitations (tenant_id, id, email, role, invited_by)
     select $1, uuid_v7(), 'q' || i || '@many.example', 'member', $2 from generate_series(1, ${rows}) i`,
    acme.owner.id
  )
  await fill(
    `insert into files (tenant_id, id, name, folded_name, purpose, size, status, sha256)
     select $1, uuid_v7(), 'f', 'f', case when i % 100 = 0 then 'rare' end, 1, 'ready', '\\x00'::bytea from generate_series(1, ${rows}) i`
  )
  await fill(
    `insert into audit_events (tenant_id, created_at, action, detail)
     select $1, now() - i * interval '1 second', case when i % 100 = 0 then 'rare' else 'common' end, '{}' from generate_series(1, ${rows}) i`
  )
  await allRows(app.database, 'vacuum analyze')
  const middle = async (table: string, id: string) =>
    (await fill(`select ${id} as id from ${table} where tenant_id = $1 order by 1 offset ${rows / 2} limit 1`))[0].id
  const filters = { action: null, actor_id: null, from: '-infinity', to: 'infinity' }
  const rare = { ...filters, action: 'rare' }
  const newest = { after_at: 'infinity', after_id: maxUuid }
  const [{ at }] = await allRows(app.database, `select (now() - interval '${rows / 2} seconds')::text as at`)
  const older = { after_at: at, after_id: maxUuid }
  const files = { status: 'ready', q: null }
  const fileId = await middle('files', 'id')

  const lists: [Statement<never, unknown>, first: object, deep: object][] = [
    [listMembers, { after_id: nilUuid }, { after_id: await middle('memberships', 'user_id') }],
    [listInvitations, { after_id: maxUuid }, { after_id: await middle('invitations', 'id') }],
    ...[null, 'rare'].map((purpose): (typeof lists)[number] => [
      filesBy({ purpose }),
      { ...files, purpose, after_id: maxUuid },
      { ...files, purpose, after_id: fileId }
    ]),
    ...[auditEventsBy, auditLinesBy].flatMap((by) =>
      [filters, rare].map((each): (typeof lists)[number] => [by(each), { ...each, ...newest }, { ...each, ...older }])
    )
  ]
  for (const [list, first, deep] of lists) {
    t.test(list.name, async (t) => {
      await withClient(app.database.app, async (client) => {
        await client.query("select set_config('app.tenant_id', $1, false), set_config('app.user_id', $2, false)", [
          acme.id,
          acme.owner.id
        ])
        await client.query('set plan_cache_mode = force_generic_plan')
        await client.query(`prepare ${list.name} as ${list.text}`)
        const call = (given: object) => {
          const values: Record<string, unknown> = { tenant_id: acme.id, limit, ...given }
          const literals = list.order.map((key) => client.escapeLiteral(String(values[key])))
          return `execute ${list.name} (${literals.map((each) => (each === "'null'" ? 'null' : each)).join(', ')})`
        }
        const cost = async (given: object) => {
          const { rows } = await client.query(`explain (analyze, buffers, format json) ${call(given)}`)
          const plan: Plan = rows[0]['QUERY PLAN'][0].Plan
          t.equal(plan['Actual Rows'], limit)
          return plan['Shared Hit Blocks'] + plan['Shared Read Blocks']
        }
        const [atFirst, atDepth] = [await cost(first), await cost(deep)]
        // each row of a page may lie in other blocks: its own, and of a member the person's and what the policy looks at
        t.ok(atDepth <= atFirst + 3 * limit + 10, `${atFirst} and ${atDepth} blocks`)
      })
    })
  }
})

import type { RememberedTable } from '../gate/statement.ts'
import { type CatalogueCheck, list, quote } from './reviewed.ts'

/**
 * The columns that remembered statements show or look for. A test compares them with what the statements read. `appears`: such
 * a statement also shows that a row came, by a count or an outer join.
 */
export const rememberedColumns: Readonly<Record<RememberedTable, { columns: readonly string[]; appears: boolean }>> = {
  memberships: { columns: ['role', 'tenant_id', 'updated_at', 'user_id', 'version'], appears: true },
  storage_usage: { columns: ['bytes', 'tenant_id'], appears: true },
  tenants: {
    columns: [
      ...['created_at', 'id', 'logo_url', 'name', 'plan', 'settings', 'slug', 'status', 'updated_at'],
      'version'
    ],
    appears: false
  },
  users: {
    columns: [
      ...['avatar_url', 'created_at', 'email', 'email_verified_at', 'id', 'mfa_enabled_at', 'name', 'updated_at'],
      'version'
    ],
    appears: false
  }
}

const wanted = Object.entries(rememberedColumns)
  .map(([table, { columns, appears }]) => `(${quote(table)}, ${list(columns)}, ${appears})`)
  .join(', ')

/** Bits of pg_trigger.tgtype. */
const events = { row: 1, insert: 4, delete: 8, update: 16, truncate: 32 }
/** A trigger of the table that always notes changes, for each of these events. */
const notes = (bits: number) => `g.tgrelid = w.relation::regclass and g.tgfoid = 'note_changes()'::regprocedure
  and g.tgenabled = 'A' and g.tgtype & ${bits} = ${bits} and g.tgtype & 2 = 0 and g.tgattr = ''`
const notesAll = (bits: number) => `exists (select from pg_trigger g where ${notes(bits)} and g.tgqual is null)`

/** Checks that the change feed learns of every change that a remembered read can show. */
export const changeChecks: readonly CatalogueCheck[] = [
  {
    id: 'C13',
    code: 'change_not_noted',
    title: 'every change that a remembered read can show is noted by a trigger, whoever makes it',
    text: `with wanted (relation, columns, appears) as (values ${wanted})
      select w.relation || '.' || c as name from wanted w, unnest(w.columns) c
      where not ${notesAll(events.row | events.update)} and not exists (
        select from pg_trigger g
        join pg_depend d on d.classid = 'pg_trigger'::regclass and d.objid = g.oid
          and d.refclassid = 'pg_class'::regclass and d.refobjid = g.tgrelid
        join pg_attribute a on a.attrelid = g.tgrelid and a.attnum = d.refobjsubid
        where ${notes(events.row | events.update)} and a.attname = c)
      union all
      select w.relation || ': insert' from wanted w where w.appears and not ${notesAll(events.row | events.insert)}
      union all
      select w.relation || ': delete' from wanted w where not ${notesAll(events.row | events.delete)}
      union all
      select w.relation || ': truncate' from wanted w where not ${notesAll(events.truncate)}`
  }
]

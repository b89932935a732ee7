import { Ajv } from 'ajv'
import addFormats from 'ajv-formats'
import { eventDetails } from '../src/events/event-schemas.ts'
import { attemptActions } from '../src/events/event-types.ts'

type Rows = { query(text: string): Promise<{ rows: { action: string; detail: unknown }[] }> }

/** Compares every row of the audit log with the schema of its type. Resolves to those that differ, and to the types seen. */
export async function checkEvents(sql: Rows): Promise<{ misfits: string[]; types: string[] }> {
  const ajv = new Ajv({ strictTypes: false })
  addFormats.default(ajv)
  const checks = new Map(Object.entries(eventDetails).map(([type, schema]) => [type, ajv.compile(schema)]))
  const { rows } = await sql.query('select distinct action, detail from audit_events')
  const events = rows.filter(({ action }) => !attemptActions.includes(action) && !action.startsWith('canary.'))
  const misfits = events.flatMap(({ action, detail }) => {
    const check = checks.get(action)
    if (check?.(detail)) return []
    return [`${action} ${JSON.stringify(detail)}: ${check ? ajv.errorsText(check.errors) : 'has no schema'}`]
  })
  return { misfits, types: [...new Set(events.map(({ action }) => action))] }
}

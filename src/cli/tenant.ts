import { Kysely } from 'kysely'
import pg from 'pg'
import { findTenant } from '../../db/directory.ts'
import { findEmbeddedUrl } from '../../db/embedded.ts'
import { createTenantGate } from '../../db/gate.ts'
import { PoolDialect } from '../../db/pool-dialect.ts'
import type { TenantTables } from '../../db/tables.ts'
import { setTenantStatus } from '../../db/tenant-status.ts'
import { type Config, InvalidConfiguration, readConfig } from '../config.ts'

/*
 * npm run tenant -- suspend <slug>    its people get 403 within a second, everybody else 404
 * npm run tenant -- resume <slug>     also one that was deleted, until it is purged
 *
 * Takes the server's own settings, and finds its embedded PostgreSQL while it runs.
 */

const [command, slug] = process.argv.slice(2)
const acts = {
  suspend: { status: 'suspended', action: 'tenant.suspended' },
  resume: { status: 'active', action: 'tenant.resumed' }
} as const

function readSettings(): Config {
  try {
    return readConfig(process.env)
  } catch (err) {
    if (err instanceof InvalidConfiguration) end(78, err.message)
    throw err
  }
}

function end(code: number, line: string): never {
  process.stderr.write(`${line}\n`)
  process.exit(code)
}

const act =
  command === 'suspend' || command === 'resume' ? acts[command] : end(64, 'usage: tenant suspend|resume <slug>')
if (!slug) end(64, 'usage: tenant suspend|resume <slug>')

const config = readSettings()
const url = config.databaseUrl ?? findEmbeddedUrl(config.dataDir)
if (!url) end(69, 'there is no DATABASE_URL, and no server runs with its own PostgreSQL here')

// one act and no hurry: nothing is prepared, so it goes by way of a pooler too
const pool = new pg.Pool({ connectionString: url, max: 1 })
const timeOuts = { statement_timeout: 10_000, lock_timeout: 5000 }
const gate = createTenantGate(new Kysely<TenantTables>({ dialect: new PoolDialect({ pool }) }), pool, [], {
  all: timeOuts,
  keyed: timeOuts
})
const [tenant] = await gate.query({ tenant_id: null, user_id: null, request: '' }, findTenant, { slug })
if (tenant) {
  const settings = { tenant_id: tenant.id, user_id: null, request: '' }
  await gate.transaction(settings, (trx) =>
    setTenantStatus(trx, tenant.id, { ...act, tokenSeconds: config.accessTokenTtl })
  )
}
await pool.end()
if (tenant) end(0, `${slug} is ${act.status}`)
end(1, `there is no agency called ${slug}`)

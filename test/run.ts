import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { startEmbedded } from '../db/embedded.ts'
import { migrate } from '../db/migrate.ts'
import { createDatabase, type DatabaseUrls, templateDatabase } from './databases.ts'
import { startPgBouncer } from './pgbouncer.ts'

/*
 * Starts one PostgreSQL for the whole run, makes the database that every test copies, and runs tap on the files that are
 * named, or on all. The last line says how it went. With TEST_PGBOUNCER=1 the product reaches it through PgBouncer in
 * transaction mode.
 */

const dir = mkdtempSync(join(tmpdir(), 'aggios-test-'))
const server = await startEmbedded(dir, { durable: false })
const app = server.url('aggios_app', 'DATABASE')
const pooler = process.env.TEST_PGBOUNCER === '1' ? await startPgBouncer(app) : undefined
const urls: DatabaseUrls = {
  postgres: server.url('postgres', 'DATABASE'),
  owner: server.url('aggios_owner', 'DATABASE'),
  app,
  serving: pooler?.through(app) ?? app
}
process.env.TEST_POSTGRES = JSON.stringify(urls)
await createDatabase(templateDatabase, 'template1')
await migrate(urls.owner.replace('DATABASE', templateDatabase))

const tap = spawn('tap', process.argv.slice(2), { stdio: ['inherit', 'pipe', 'inherit'] })
let tail = ''
tap.stdout.setEncoding('utf8').on('data', (text: string) => {
  process.stdout.write(text)
  tail = (tail + text).slice(-4096)
})
const code = await new Promise<number>((done, fail) => {
  tap.once('error', fail)
  tap.once('close', (exit) => done(exit ?? 1))
})
await pooler?.stop()
await server.stop()
rmSync(dir, { recursive: true, force: true })

// on a terminal tap closes with its own picture of this; elsewhere with one line of counts
const summary = tail.match(/^# \{ (total: .*) \}$/m)?.[1]
const count = (key: string) => Number(summary?.match(new RegExp(`\\b${key}: (\\d+)`))?.[1] ?? 0)
if (summary !== undefined || code !== 0) {
  const skipped = count('skip') + count('todo')
  const failed = code === 0 ? count('fail') : Math.max(1, count('fail'))
  process.stdout.write(`\n${count('pass')} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`)
}
process.exitCode = code

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { allRows, createTestDatabase, eventually, startServer, testEnvironment } from './harness.ts'
import { registerAgency } from './oracle.ts'
import { copySources } from './source-copy.ts'

// rehearsal: an upgrade and the way back, under load

/*
 * docs/upgrades.md, carried out under load: the next version migrates, serves beside this one and alone, and is taken back. The next
 * version is a copy of the sources with one more step, which adds a column and declares an index.
 */

const nextStep = `import { sql } from 'kysely'
export const indexes = [{ name: 'users_by_nickname', table: 'users', on: '(nickname) where nickname is not null' }]
export async function up(db) {
  await sql\`alter table users add column nickname text; grant select (nickname) on users to aggios_app\`.execute(db)
}
`

t.test('an upgrade and the way back lose no request and nothing that was written', async (t) => {
  const urls = await createTestDatabase(t)
  const nextFolder = copySources(t)
  writeFileSync(join(nextFolder, 'db', 'migrations', '9998_nicknames.ts'), nextStep)
  const next = (await import(join(nextFolder, 'test', 'harness.ts'))) as typeof import('./harness.ts')
  const env = testEnvironment(urls, { DATABASE_POOL: '3', LOG_LEVEL: 'error' })

  let serving = [await startServer(t, env)]
  const { body } = await registerAgency(serving[0]?.url as string, 'acme')
  const { access_token } = body as { access_token: string }
  const failures: string[] = []
  let written = 0
  let loading = true
  /** Changes the name again and again, at each process in turn, and reads it back at another one. */
  const load = (async () => {
    for (let turn = 0; loading; turn++) {
      const at = (each: number) => serving[each % serving.length] as (typeof serving)[0]
      const headers = { authorization: `Bearer ${access_token}`, 'content-type': 'application/json' }
      const name = `Ada ${turn}`
      try {
        const change = { method: 'PATCH', headers, body: JSON.stringify({ name }) }
        const reply = await fetch(`${at(turn).url}/api/v1/users/me`, change)
        if (reply.status !== 200) throw new Error(`${reply.status} ${await reply.text()}`)
        written++
        // the processes do not hear of each other's changes, so what another one remembers may be a second old
        const newest = { headers: { ...headers, 'cache-control': 'no-cache' } }
        const read = await fetch(`${at(turn + 1).url}/api/v1/users/me`, newest)
        const seen = (await read.json()) as { name?: string }
        if (seen.name !== name) throw new Error(`${read.status} ${JSON.stringify(seen)} in place of ${name}`)
      } catch (err) {
        failures.push(`${turn}: ${(err as Error).message}`)
      }
      await sleep(10)
    }
  })()
  const goesOn = async () => {
    const before = written
    await eventually(() => written >= before + 10)
  }
  const end = async (server: (typeof serving)[0]) => {
    serving = serving.filter((each) => each !== server)
    await sleep(100)
    server.child.kill('SIGTERM')
    t.match(await server.exited, { code: 0 })
  }
  const migrate = async (folder: string) => {
    const job = spawn(process.execPath, [...process.execArgv, join(folder, 'src', 'cli', 'migrate.ts')], {
      cwd: folder,
      env: { PATH: process.env.PATH, DATABASE_OWNER_URL: urls.owner }
    })
    const [stdout, stderr, [code]] = await Promise.all([text(job.stdout), text(job.stderr), once(job, 'exit')])
    return { code, stdout, stderr }
  }

  await goesOn()
  t.match(await migrate(nextFolder), {
    code: 0,
    stdout: /^applied 9998_nicknames\nthe schema is up to date/,
    stderr: /built the index users_by_nickname/
  })
  await goesOn()
  const upgraded = await next.startServer(t, env)
  serving = [...serving, upgraded]
  await goesOn()
  t.comment('both versions serve')
  await end(serving[0] as (typeof serving)[0])
  await goesOn()
  t.strictSame(serving, [upgraded])

  t.match(await migrate(join(import.meta.dirname, '..')), { code: 0, stdout: /^the schema is up to date/ })
  const back = await startServer(t, env)
  serving = [...serving, back]
  await goesOn()
  await end(upgraded)
  await goesOn()
  loading = false
  await load
  t.strictSame(serving, [back])
  t.strictSame(failures, [])
  const [audit] = await allRows(urls, "select count(*)::int as count from audit_events where action = 'user.updated'")
  t.equal(audit?.count, written, 'each change is there once')
  const [index] = await allRows(
    urls,
    "select indisvalid from pg_index where indexrelid = 'users_by_nickname'::regclass"
  )
  t.strictSame(index, { indisvalid: true }, 'what the newer version built stays')
})

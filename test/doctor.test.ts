import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import t from 'tap'
import { catalogueChecks } from '../db/catalogue/checks.ts'
import { examine, type Report } from '../src/cli/doctor/doctor.ts'
import { kinds } from '../src/cli/doctor/findings.ts'
import { judge, knownHoles, knownHolesAsOf } from '../src/cli/doctor/known-holes.ts'
import { renderKinds } from '../src/cli/doctor/report-text.ts'
import { readConfig } from '../src/config/config.ts'
import type { Environment } from '../src/config/environment.ts'
import { checks } from './catalogue-checks.ts'
import { withClient } from './databases.ts'
import { faults } from './doctor-faults.ts'
import { createWorld } from './doctor-world.ts'
import {
  commandFile,
  createTestDatabase,
  elsewhere,
  eventually,
  readText,
  startServer,
  testEnvironment
} from './harness.ts'
import { openssl } from './traefik.ts'

// bounded in time: how soon services answer

/*
 * `npm run doctor`: it finds each of many planted faults, and nothing else, and changes nothing.
 */

const codesOf = ({ findings }: Report) => [...new Set(findings.map(({ code }) => code))].sort()
/** Other programs use the machine of the tests, so a service may be slow. */
const isPace = ({ code }: { code: string }) => code.endsWith('_slow')

t.test('an installation', { skip: openssl.skip }, async (t) => {
  const world = await createWorld(t)
  const { cluster, s3, admin, look, sound } = world

  t.test('that is sound has no findings, and changes by no byte', async (t) => {
    const transactions = async () =>
      (await admin('select pg_snapshot_xmax(pg_current_snapshot())::text as next'))[0]?.next
    const [before, calls] = [await transactions(), s3.calls.length]
    const report = await look()
    t.strictSame(report.findings, [])
    t.equal(report.status, 'sound')
    t.equal(await transactions(), before, 'no transaction has written')
    t.strictSame([...s3.objects.keys()], [])
    t.strictSame(
      s3.calls.slice(calls).filter((what) => !/^(GET|HEAD) /.test(what)),
      []
    )
    t.match(report.facts, { database: { version: /^16\./ }, store: { latency_ms: Number } })
    for (const { check, reason } of report.not_checked) t.ok(check && reason, `${check}: ${reason}`)
    const checked = report.checks - new Set(report.not_checked.map(({ check }) => check)).size
    t.ok(checked > 50, `${checked} things were looked at`)
  })

  for (const { title, finds, plant, only } of faults) {
    t.test(`with ${title}`, { skip: only[0] === 'redis' && !world.redis }, async (t) => {
      const report = await look(await plant(world, t), only)
      t.strictSame(codesOf(report), finds.sort())
      for (const { seen, remedy } of report.findings) t.ok(seen.length > 3 && remedy.length > 10, seen)
      const text = JSON.stringify(report)
      for (const secret of ['JWT_SECRET', 'PASSWORD_PEPPER', 'S3_SECRET_KEY']) t.notMatch(text, sound[secret] as string)
      t.notMatch(text, new URL(cluster.url('aggios_app')).password)
    })
  }

  t.test('with every kind of wrong object in its schema', async (t) => {
    await admin('create database broken template aggios')
    t.teardown(() => admin('drop database broken with (force)'))
    const urlOf = (role: 'postgres' | 'aggios_app') => cluster.url(role).replace(/aggios$/, 'broken')
    await withClient(urlOf('postgres'), async (client) => {
      await client.query('revoke all on database broken from public; grant connect on database broken to aggios_app')
      await client.query('alter database broken owner to aggios_owner')
      // a defect of a role would break the other databases
      const local = checks.map(({ id, defects }) => ({
        id,
        defects: defects.filter(({ plant }) => !/\brole\b|grant aggios|grant pg_/.test(plant))
      }))
      // a second object of one name can't be made, so checks with few defects come first
      for (const { id, defects } of local.sort((one, other) => one.defects.length - other.defects.length)) {
        let planted = false
        for (const { plant, as = 'aggios_owner' } of defects) {
          if (planted) break
          await client.query('begin')
          planted = await client.query(`set local role ${as}; ${plant}; reset role`).then(
            () => true,
            () => false
          )
          await client.query(planted ? 'commit' : 'rollback')
        }
        t.ok(planted, `${id} is planted`)
      }
    })
    const found = codesOf(await look({ databaseUrl: urlOf('aggios_app') }, ['database']))
    for (const { code } of catalogueChecks) t.ok(found.includes(code), code)
  })

  t.test('without a role for backups says so, and does not call it fine', async (t) => {
    await admin('alter role aggios_backup rename to somebody')
    t.teardown(() => admin('alter role somebody rename to aggios_backup'))
    const { findings, not_checked } = await look({}, ['database'])
    t.strictSame(findings, [])
    const reasons = Object.fromEntries(not_checked.map(({ check, reason }) => [check, reason]))
    t.match(reasons, { dumps: /^there is no role aggios_backup/, backup_role_wrong: /does not exist/ })
  })

  t.test('with settings that cannot be read', async (t) => {
    const { code, stdout } = await doctor({ ...sound, PORT: 'many', RATE_LIMIT: 'much' }, '--json')
    t.equal(code, 4)
    t.match(JSON.parse(stdout), {
      findings: [
        { code: 'settings_invalid', seen: /^PORT: / },
        { code: 'settings_invalid', seen: /^RATE_LIMIT: / }
      ]
    })
  })

  t.test('is examined by a command, as text and as JSON, with an exit code', async (t) => {
    const env = { ...sound, APP_URL: 'http://127.0.0.1:1', API_URL: '', NODE_ENV: 'development' }
    const [text, json] = [await doctor(env), await doctor(env, '--json')]
    t.match(text.stdout, /^error: PostgreSQL has a known hole \(database_outdated\)\n {2}seen {2}PostgreSQL 16\./m)
    t.match(text.stdout, /\n {2}do {4}Install the fixed version/)
    t.match(text.stdout, /\n {2}read {2}docs\/doctor.md#known-holes\n/)
    const report = JSON.parse(json.stdout) as Report
    t.strictSame(codesOf({ ...report, findings: report.findings.filter((finding) => !isPace(finding)) }), [
      'app_url_unreachable',
      'database_outdated'
    ])
    t.strictSame([text.code, json.code, report.status], [4, 4, 'errors'])
    t.match(await doctor(env, '--colour'), { code: 2 })
    const warned = await doctor({ ...env, DATABASE_URL: '', TRUST_PROXY: '10.0.0.0/8' }, '--json')
    t.match(JSON.parse(warned.stdout).findings, [{ code: 'database_unreachable' }, { severity: 'warning' }])
  })

  t.test('tells in the log of a start in production what is wrong, and serves all the same', async (t) => {
    const server = await startServer(t, { ...sound, TRUST_PROXY: '', HOST: '127.0.0.1', LOG_LEVEL: 'info' })
    await eventually(() => server.output().includes('the installation was examined'))
    const lines = server
      .output()
      .split('\n')
      .filter((line) => line.startsWith('{'))
    const found = lines.map((line) => JSON.parse(line)).filter(({ finding }) => finding && !isPace(finding))
    t.match(found, [
      { level: 40, msg: /known hole/, finding: { code: 'database_outdated', remedy: String } },
      {
        level: 40,
        finding: { code: 'trust_proxy_missing', seen: 'TRUST_PROXY is empty' }
      }
    ])
    t.equal(found.length, 2)
    t.equal((await server.fetch('/api/v1/health/live')).status, 200)
  })
})

/** Runs the command as an operator does. */
const doctor = (env: Environment, ...args: string[]) =>
  new Promise<{ code: number; stdout: string }>((resolve) => {
    const options = { cwd: elsewhere, env: { PATH: process.env.PATH, ...env } as NodeJS.ProcessEnv }
    execFile(process.execPath, [...process.execArgv, commandFile('doctor'), ...args], options, (err, stdout) =>
      resolve({ code: err ? Number(err.code) : 0, stdout })
    )
  })

t.test('a database of a laptop is no sound one', async (t) => {
  const env = testEnvironment(await createTestDatabase(t), { NODE_ENV: 'production', JWT_SECRET: 'x'.repeat(3) })
  const { NODE_ENV: _, JWT_SECRET: __, ...rest } = env
  const config = { ...readConfig(rest), nodeEnv: 'production' as const, sweep: 'on' as const }
  const report = await examine({ config, env, databaseUrl: config.databaseUrl }, { atStart: true })
  const found = codesOf(report)
  for (const code of ['no_backup_seen', 'database_not_durable', 'rate_limits_off', 'mail_not_sent']) {
    t.ok(found.includes(code), code)
  }
})

t.test('the list of known holes', async (t) => {
  t.match(knownHolesAsOf, /^20\d\d-\d\d-\d\d$/)
  for (const { id, fixed, source } of knownHoles) {
    t.match(id, /^CVE-\d{4}-\d+$/)
    t.match(source, id)
    for (const version of fixed)
      t.equal(judge(version, { product: '', id, branch: 2, fixed, source }), 'closed', version)
  }
  const hole = (branch: number, ...fixed: string[]) => ({ product: '', id: '', branch, fixed, source: '' })
  for (const [version, each, verdict] of [
    ['16.15', hole(1, '15.20', '16.16'), 'open'],
    ['16.16', hole(1, '15.20', '16.16'), 'closed'],
    ['17.0', hole(1, '15.20', '16.16'), 'closed'],
    ['13.22', hole(1, '15.20', '16.16'), 'unknown'],
    ['7.0.15', hole(2, '7.2.11', '7.4.6'), 'unknown'],
    ['7.4.5', hole(2, '7.2.11', '7.4.6'), 'open'],
    ['2025-04-03T14-56-28Z', hole(0, '2025-10-15T17-29-55Z'), 'open'],
    ['2025-10-15T17-29-55Z', hole(0, '2025-10-15T17-29-55Z'), 'closed']
  ] as const) {
    t.equal(judge(version, each), verdict, version)
  }
})

t.test('docs/doctor.md lists everything that can be found, and each finding leads to a page', async (t) => {
  t.ok(readText('docs/doctor.md').includes(renderKinds()), 'npm run doctor -- --codes')
  const covered = new Set([...faults.flatMap(({ finds }) => finds), ...catalogueChecks.map(({ code }) => code)])
  t.ok(covered.size >= 60, `${covered.size} of ${kinds.size} are planted`)
  for (const [code, { docs }] of kinds) t.ok(readFileSync(new URL(`../${docs.split('#')[0]}`, import.meta.url)), code)
})

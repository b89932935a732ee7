import { join } from 'node:path'
import t from 'tap'
import { withClient } from './databases.ts'
import { createTestDatabase, eventually, startServer, temporaryFolder, testEnvironment } from './harness.ts'
import { judge, type Operation, openLedger, prepareAgency, startWorkload } from './oracle.ts'
import { createRandom } from './random.ts'

/*
 * A test of the judge of the fault scenarios: it must find each planted violation, and report nothing on a correct history.
 */

t.test('the judge', async (t) => {
  const database = await createTestDatabase(t)
  const server = await startServer(t, testEnvironment(database, { SMTP_URL: 'smtp://127.0.0.1:9' }))
  const dir = temporaryFolder(t)
  const ledger = openLedger(t, join(dir, 'ledger'))
  const agencies = [await prepareAgency(server.url, 'acme', 2), await prepareAgency(server.url, 'rival', 2)]
  const urls = () => [server.url]
  const workload = startWorkload({ agencies, urls, ledger, random: createRandom(1) })
  await eventually(() => workload.acknowledged() > 80, 30_000)
  await workload.settle()
  const operations = ledger.read()
  const [planted] = agencies
  const verdicts = (changed = operations, judged = planted ? [planted] : []) =>
    judge(database, server.url, judged, changed)
  const withOne = (which: (operation: Operation) => boolean, change: Partial<Operation>) => {
    const index = operations.findIndex(which)
    return operations.map((operation, i) => (i === index ? { ...operation, ...change } : operation))
  }

  t.test('has nothing to say where nothing went wrong', async (t) => {
    t.strictSame(workload.faults, [])
    t.strictSame(await verdicts(operations, agencies), [])
    for (const kind of ['append', 'invite', 'found', 'refresh'] as const) {
      t.ok(operations.filter((operation) => operation.kind === kind && operation.outcome === 'ok').length >= 3, kind)
    }
  })

  t.test('has read what was asked but never answered as unknown', async (t) => {
    const n = ledger.ask({ agency: 'acme', kind: 'invite', key: 'unanswered@example.com' })
    t.match(
      ledger.read().find((operation) => operation.n === n),
      { key: 'unanswered@example.com', outcome: 'info' }
    )
    t.strictSame(await verdicts(ledger.read()), [], 'which may be there or not')
  })

  t.test('misses what was acknowledged and is not there', async (t) => {
    for (const kind of ['append', 'invite', 'found'] as const) {
      const key = `acme:lost-${kind}`
      const lost = { n: 0, agency: 'acme', kind, key, before: 'acme:0', outcome: 'ok', status: 201 } as const
      t.strictSame(await verdicts([...operations, lost]), [`${key} was acknowledged and is lost`])
    }
  })

  t.test('sees what was refused and is there all the same', async (t) => {
    for (const kind of ['append', 'invite', 'found'] as const) {
      const refused = withOne((each) => each.agency === 'acme' && each.kind === kind && each.outcome === 'ok', {
        outcome: 'fail'
      })
      t.match(await verdicts(refused), [/was refused and is there$/])
    }
  })

  t.test('sees what nobody asked for', async (t) => {
    for (const kind of ['append', 'invite', 'found'] as const) {
      const key = operations.find((each) => each.agency === 'acme' && each.kind === kind && each.outcome === 'ok')?.key
      const others = operations.filter((each) => each.key !== key)
      t.strictSame(await verdicts(others), [`${key} was never asked for`])
    }
  })

  t.test('sees an update that was lost to another', async (t) => {
    const based = withOne((each) => each.agency === 'acme' && each.kind === 'append' && each.outcome === 'ok', {
      before: 'acme:something else'
    })
    t.match(await verdicts(based), [/ replaced .* for acme:something else$/])
  })

  const defects: [what: string, sql: string, undo: string, verdict: RegExp][] = [
    [
      'a change without its row in the audit log',
      "update tenants set version = version + 1 where slug = 'acme'",
      "update tenants set version = version - 1 where slug = 'acme'",
      /version \d+ after \d+ changes/
    ],
    [
      'a row in the audit log without its change',
      "insert into audit_events (tenant_id, action, target_id) select id, 'invitation.created', id from tenants where slug = 'acme'",
      "delete from audit_events where action = 'invitation.created' and target_id in (select id from tenants)",
      /nobody was never asked for/
    ],
    [
      'a name that is not that of the last change',
      "update tenants set name = 'acme:planted' where slug = 'acme'",
      '',
      /the last change is .*, the name is acme:planted/
    ],
    [
      'a session that was rotated without its client being told',
      'update sessions set counter = counter + 1 where counter > 0',
      'update sessions set counter = counter - 1 where counter > 1',
      /rotated \d+ times, told \d+/
    ]
  ]
  for (const [what, sql, undo, verdict] of defects) {
    t.test(`sees ${what}`, async (t) => {
      await withClient(database.postgres, (client) => client.query(sql))
      t.ok((await verdicts()).some((each) => verdict.test(each)))
      if (undo) await withClient(database.postgres, (client) => client.query(undo))
    })
  }
})

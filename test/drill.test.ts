import { join } from 'node:path'
import t from 'tap'
import { archiveSkip } from './archive.ts'
import type { DrillReport } from './drill-run.ts'
import { differences, type State } from './drill-state.ts'
import { root, run } from './harness.ts'

// rehearsal: everything is destroyed and restored

t.test(
  'npm run drill restores a destroyed installation to a second',
  { skip: archiveSkip, timeout: 540_000 },
  async (t) => {
    const words = [join(root, 'test', 'drill.ts'), '--agencies', '2', '--clients', '2', '--seconds', '1', '--json']
    const { stdout } = await run(process.execPath, [...process.execArgv, ...words])
    const report = JSON.parse(stdout) as DrillReport
    t.match(report, { ok: true, problems: [], lost: 0, audit_chains: 2 })
    t.ok(report.acknowledged_before > 0 && report.acknowledged_after > 0, 'it wrote before and after the second')
    t.ok(report.rows > report.acknowledged_before, 'it compared rows')
    t.ok(report.objects >= 2, 'and objects')
  }
)

t.test('a drill finds what is not as it was', async (t) => {
  const state = (): State => ({
    tables: { files: { rows: 2, digest: '17' }, users: { rows: 1, digest: '4' } },
    objects: { 'a/files/1': 'aa', 'a/files/2': 'bb' }
  })
  const changed = (change: (state: State) => unknown) => {
    const after = state()
    change(after)
    return differences(state(), after)
  }
  t.strictSame(
    changed(() => {}),
    []
  )
  t.match(
    changed(({ tables }) => Object.assign(tables.files ?? {}, { digest: '18' })),
    [/^table files had 2 rows and has 2/]
  )
  t.match(
    changed(({ tables }) => Object.assign(tables.files ?? {}, { rows: 1 })),
    [/^table files had 2 rows and has 1/]
  )
  t.match(
    changed(({ tables }) => delete tables.users),
    [/^table users had 1 rows and has no/]
  )
  t.match(
    changed(({ objects }) => delete objects['a/files/1']),
    ['object a/files/1 is missing']
  )
  t.match(
    changed(({ objects }) => Object.assign(objects, { 'a/files/2': 'xx' })),
    ['object a/files/2 has other bytes']
  )
  t.match(
    changed(({ objects }) => Object.assign(objects, { 'a/files/3': 'cc' })),
    ['object a/files/3 is new']
  )
})

t.test('npm run drill refuses what it does not understand', async (t) => {
  const refused = (...words: string[]) =>
    run(process.execPath, [...process.execArgv, join(root, 'test', 'drill.ts'), ...words]).catch((err) => err)
  t.match(await refused('--seconds', 'many'), { code: 2, stderr: /^--seconds must be a number; npm run drill/ })
  t.match(await refused('--hours', '2'), { code: 2, stderr: /--hours/ })
})

import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parse, stringify } from 'yaml'
import { budgetFaults, budgetMinutes, type Fault, faults, healthySeries, minutes } from './alert-faults.ts'
import { createTenant, readText, root, run, startApp, temporaryFolder } from './harness.ts'
import { findProgram } from './parts.ts'

// rehearsal: each alert fires at its fault

/*
 * The alerts of deploy/observability/prometheus: each fires at the fault that it is for, and at nothing else. What they ask for exists.
 */

const promtool = findProgram('promtool')
const folder = 'deploy/observability/prometheus'
const files = ['alerts', 'objectives'].map((name) => `${folder}/${name}.yml`)

type Rule = { alert?: string; record?: string; expr: string; labels: Record<string, string> }
const rules = files.flatMap((file) =>
  (parse(readText(file)).groups as { rules: Rule[] }[]).flatMap(({ rules }) => rules)
)
const alerts = [...new Set(rules.flatMap(({ alert }) => alert ?? []))]

/** The series of a healthy installation with those of a fault in their place. */
function plant({ title, series }: Fault, length: number): Record<string, string> {
  const planted: Record<string, string | undefined> = healthySeries(length)
  for (const [start, values] of Object.entries(series)) {
    const names = Object.keys(planted).filter((name) => name.startsWith(start))
    if (names.length !== 1 || names[0] === undefined)
      throw new Error(`${title}: ${names.length} series begin with ${start}`)
    planted[names[0]] = values
  }
  return planted as Record<string, string>
}

/** One test of promtool: at each of these minutes, exactly these alerts fire. */
const testOf = (name: string, series: Record<string, string>, fires: readonly string[], at: number[]) => ({
  name,
  interval: '1m',
  input_series: Object.entries(series).flatMap(([series, values]) =>
    values === undefined ? [] : [{ series, values }]
  ),
  promql_expr_test: at.map((minute) => ({
    expr: 'group by (alertname, severity) (ALERTS{alertstate="firing"})',
    eval_time: `${minute}m`,
    exp_samples: fires.map((each) => {
      const [alertname, severity] = each.split(' ')
      return { labels: `{alertname="${alertname}", severity="${severity}"}`, value: 1 }
    })
  }))
})

t.test('each alert fires at its fault and at nothing else', { skip: promtool.skip }, async (t) => {
  const scratch = temporaryFolder(t)
  async function judge(tests: object[], evaluation_interval: string) {
    const file = join(scratch, 'tests.yml')
    writeFileSync(file, stringify({ rule_files: files.map((each) => join(root, each)), evaluation_interval, tests }))
    return run(promtool.path, ['test', 'rules', file]).catch((err) => err as { stdout: string; stderr: string })
  }
  const soon = [
    testOf('nothing', healthySeries(minutes), [], [4, 30, 60, minutes]),
    ...faults.map((fault) => testOf(fault.title, plant(fault, minutes), fault.fires, [minutes]))
  ]
  t.match(await judge(soon, '2m'), { stderr: '', stdout: /SUCCESS/ })
  const late = [
    testOf('nothing', healthySeries(budgetMinutes), [], [budgetMinutes]),
    ...budgetFaults.map((fault) => testOf(fault.title, plant(fault, budgetMinutes), fault.fires, [budgetMinutes]))
  ]
  t.match(await judge(late, '10m'), { stderr: '', stdout: /SUCCESS/ })

  // the oracle does look: an alert that is expected and missing, and one too many
  const [first] = faults as [Fault]
  const missing = testOf('missing', healthySeries(minutes), first.fires, [minutes])
  for (const wrong of [missing, testOf('too many', plant(first, minutes), [], [minutes])]) {
    t.match((await judge([wrong], '2m')).stderr, /FAILED/)
  }
})

t.test('Prometheus takes the configuration of compose.observability.yaml', { skip: promtool.skip }, async (t) => {
  const { stdout } = await run(promtool.path, ['check', 'config', join(root, `${folder}/prometheus.yml`)])
  t.match(stdout, /2 rule files found/)
})

t.test('every alert has a fault, a page and a word about what to do', async (t) => {
  const fired = new Set([...faults, ...budgetFaults].flatMap(({ fires }) => fires))
  const page = readText('docs/observability.md')
  for (const { alert, labels } of rules.filter(({ alert }) => alert !== undefined)) {
    t.ok(fired.has(`${alert} ${labels.severity}`), `${alert}: a fault, as ${labels.severity}`)
  }
  for (const alert of alerts) {
    const [, text = ''] = new RegExp(`^### ${alert}\\n\\n(.*?)\\n(?=#|$)`, 'ms').exec(page) ?? []
    t.ok(text.length > 80, `${alert}: a section of docs/observability.md`)
  }
  const headings = [...page.matchAll(/^### (Aggios\w+)$/gm)].map(([, name]) => name)
  t.strictSame(headings.sort(), [...alerts].sort(), 'and no other section')
})

t.test('what the rules ask for exists', async (t) => {
  const app = await startApp(t, { METRICS_PORT: '9464' })
  await createTenant(app, 'acme')
  const known = new Set((await app.metrics.collect()).map(({ name }) => name))
  // the internal listener adds these
  for (const name of ['aggios_worker_up', 'aggios_worker_restarts_total', 'up']) known.add(name)
  for (const { record } of rules) if (record !== undefined) known.add(record)
  for (const { alert, record, expr } of rules) {
    const plain = expr.replaceAll(/"[^"]*"/g, '""')
    const names = plain.match(/\b(?:aggios|http|nodejs|process)_\w+|\baggios:[\w:]+|\bup\b/g) ?? []
    t.not(names.length, 0, expr)
    for (const name of names) t.ok(known.has(name.replace(/_(?:bucket|count|sum)$/, '')), `${alert ?? record}: ${name}`)
  }
})

import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { dashboards, grafanaFile } from './dashboard-panels.ts'
import { startWatched } from './dashboard-run.ts'
import { createTestDatabase, readText, root } from './harness.ts'
import { findProgram } from './parts.ts'

// rehearsal: dashboards show a run with a real Prometheus

/*
 * The dashboards: Grafana reads the files that `npm run dashboards` makes, and no panel of a running product is empty.
 */

const folder = 'deploy/observability/grafana/dashboards'
const prometheus = findProgram('prometheus')

t.test('the files are those of the panels, and each has a picture', async (t) => {
  const files = dashboards.map(({ uid }) => `${uid}.json`)
  t.strictSame(readdirSync(join(root, folder)).sort(), files.sort())
  const page = readText('docs/observability.md')
  for (const dashboard of dashboards) {
    const file = JSON.parse(readText(`${folder}/${dashboard.uid}.json`))
    t.strictSame(file, JSON.parse(grafanaFile(dashboard)), 'made by npm run dashboards')
    t.match(page, `](${dashboard.uid}.svg)`)
    const picture = readText(`docs/${dashboard.uid}.svg`)
    for (const { title } of dashboard.panels) t.ok(picture.includes(`>${title}</text>`), title)
  }
})

t.test('every query of a running product has series', { skip: prometheus.skip }, async (t) => {
  const watched = await startWatched(t, await createTestDatabase(t), prometheus.path)
  await watched.load(8000)
  for (const dashboard of dashboards) {
    const lines = await watched.linesOf(dashboard, '5s')
    for (const [index, { title, queries }] of dashboard.panels.entries()) {
      t.ok((lines[index]?.length ?? 0) >= queries.length, `${dashboard.title}: ${title}`)
    }
  }
})

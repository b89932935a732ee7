import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { build } from '../src/observability/build.ts'
import { startCluster } from './cluster.ts'
import { drawDashboard } from './dashboard-drawing.ts'
import { dashboards, grafanaFile } from './dashboard-panels.ts'
import { startWatched } from './dashboard-run.ts'
import { root } from './harness.ts'
import { findProgram } from './parts.ts'
import { urlsOf } from './stand.ts'

/*
 * `npm run dashboards`: writes the files that Grafana reads. With `--draw <minutes>` it also runs the product under load for
 * that long, watched by Prometheus, and draws each dashboard from what its queries give.
 */

const { values: options } = parseArgs({ options: { draw: { type: 'string' } } })

for (const dashboard of dashboards) {
  const path = join(root, 'deploy/observability/grafana/dashboards', `${dashboard.uid}.json`)
  writeFileSync(path, grafanaFile(dashboard))
}
if (options.draw !== undefined) await draw(Number(options.draw))
process.exit(0)

async function draw(minutes: number): Promise<void> {
  const prometheus = findProgram('prometheus')
  if (prometheus.skip !== false) throw new Error(prometheus.skip)
  const started: (() => unknown)[] = []
  const owner = { teardown: (work: () => unknown) => started.push(work) }
  try {
    const cluster = await startCluster(owner)
    const urls = urlsOf(cluster)
    const watched = await startWatched(owner, { ...urls, serving: urls.app }, prometheus.path)
    await watched.load(minutes * 60_000)
    for (const dashboard of dashboards) {
      const about = `${minutes} minutes of version ${build.version} with two workers and growing load, read by Prometheus and drawn by npm run dashboards`
      const svg = drawDashboard(dashboard, await watched.linesOf(dashboard, '30s'), about)
      writeFileSync(join(root, 'docs', `${dashboard.uid}.svg`), svg)
    }
  } finally {
    for (const work of started.reverse()) await work()
  }
}

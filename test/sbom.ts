import { execFileSync } from 'node:child_process'
import { join } from 'node:path'

/*
 * `npm run sbom`: the shipped packages as CycloneDX. `npm sbom --omit dev` would leave out those that a tool uses too, so this takes
 * the whole list and removes what is for development only.
 */

type Component = { 'bom-ref': string; purl: string; properties?: { name: string; value: string }[] }
export type Report = {
  bomFormat: string
  components: Component[]
  dependencies: { ref: string; dependsOn?: string[] }[]
}

const isTool = ({ properties = [] }: Component) =>
  properties.some(({ name, value }) => name === 'cdx:npm:package:development' && value === 'true')

/** Reads the lock file, by npm and without the network. */
export function createReport(): Report {
  const words = ['sbom', '--package-lock-only', '--sbom-format', 'cyclonedx', '--sbom-type', 'application']
  const options = { cwd: join(import.meta.dirname, '..'), encoding: 'utf8', maxBuffer: 2 ** 26 } as const
  const report = JSON.parse(execFileSync('npm', words, options)) as Report
  const tools = new Set(report.components.filter(isTool).map((each) => each['bom-ref']))
  return {
    ...report,
    components: report.components.filter((each) => !isTool(each)),
    dependencies: report.dependencies
      .filter(({ ref }) => !tools.has(ref))
      .map(({ ref, dependsOn = [] }) => ({ ref, dependsOn: dependsOn.filter((each) => !tools.has(each)) }))
  }
}

if (import.meta.main) process.stdout.write(`${JSON.stringify(createReport(), undefined, 2)}\n`)

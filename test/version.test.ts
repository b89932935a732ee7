import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { parse } from 'yaml'
import { createTestDatabase, readText, root, startServer, testEnvironment } from './harness.ts'
import { freePort } from './ports.ts'

/*
 * Everything that shows a version shows the one of package.json.
 */

const { version } = JSON.parse(readText('package.json')) as { version: string }

t.test('a running server says its version', async (t) => {
  const metricsPort = await freePort()
  const env = testEnvironment(await createTestDatabase(t), { METRICS_PORT: String(metricsPort) })
  const server = await startServer(t, env)
  const document = await (await server.fetch('/api/v1/openapi.json')).json()
  t.match(document, { info: { version } }, 'in the OpenAPI document')
  const yaml = parse(await (await server.fetch('/api/v1/openapi.yaml')).text())
  t.equal(yaml.info.version, version, 'as YAML too')
  const health = await (await fetch(`http://127.0.0.1:${metricsPort}/health`)).json()
  t.match(health, { status: 'ok', version }, 'on the internal listener')
  const outside = await (await server.fetch('/api/v1/health')).text()
  t.notMatch(outside, version, 'and not to everybody')
})

t.test('the files that repeat it agree', async (t) => {
  t.match(version, /^\d+\.\d+\.\d+$/)
  for (const path of ['package-lock.json', 'client/package.json', 'client/package-lock.json'])
    t.equal(JSON.parse(readText(path)).version, version, path)
  t.equal(JSON.parse(readText('client/openapi.json')).info.version, version, 'client/openapi.json')
})

t.test('the changelog has an entry of it, below what is not released', async (t) => {
  const headings = [...readText('CHANGELOG.md').matchAll(/^## \[(.+?)\](?: - (\S+))?$/gm)]
  t.match(headings[0]?.[1], 'Unreleased')
  t.equal(headings[1]?.[1], version)
  for (const [, name = '', day] of headings.slice(1)) t.match(day, /^\d{4}-\d\d-\d\d$/, name)
})

t.test('the license is that of package.json', async (t) => {
  t.ok(existsSync(join(root, 'LICENSE')))
  t.equal(JSON.parse(readText('package.json')).license, 'UNLICENSED')
  t.match(readText('LICENSE'), /all rights reserved/i)
})

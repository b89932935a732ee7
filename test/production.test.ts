import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { createTestDatabase, readText, root, startServer, temporaryFolder, testEnvironment } from './harness.ts'
import { findProgram } from './parts.ts'
import { freePort } from './ports.ts'
import { otherStrongSecret, strongSecret } from './tokens.ts'

/*
 * docs/production.md, pasted into a shell beside a server. Commands that run tests are only looked at, because those tests run beside
 * this one.
 */

const page = readText('docs/production.md')
const sections = page.split(/^(?=###? )/m)
const blocksOf = (text: string) => [...text.matchAll(/^```bash\n(.*?)^```$/gms)].map(([, code = '']) => code)
const onInstallation = (code: string) => code.startsWith('# on the installation')
const testCommand = /^npm test -- (.+)$/gm

t.test('each line of both lists says how it is met, shows it, and names what is left', (t) => {
  const lines = sections.filter((section) => section.startsWith('### '))
  const numbers = lines.map((section) => Number(/^### (\d+)\. /.exec(section)?.[1]))
  const ten = Array.from({ length: 10 }, (_, index) => index + 1)
  t.strictSame(numbers, [...ten, ...ten])
  for (const section of lines) {
    const [title = ''] = section.split('\n', 1)
    t.ok(
      blocksOf(section).some((code) => !onInstallation(code)),
      `${title}: there is a command that runs anywhere`
    )
    t.match(section, /^Yours: /m, title)
  }
  t.end()
})

t.test('what only an installation can run names what is there', (t) => {
  const { scripts } = JSON.parse(readText('package.json'))
  const commands = blocksOf(page).filter(onInstallation).join('')
  for (const [, script = ''] of commands.matchAll(/npm run (\S+)/g)) t.ok(script in scripts, script)
  for (const [file] of commands.matchAll(/[\w./-]+\.ya?ml/g)) t.ok(existsSync(join(root, file)), file)
  t.match(readText('compose.backup.yaml'), /"\/backup\.sh", "check"|\/backup\.sh, check/)
  t.end()
})

t.test('tests that are named exist', (t) => {
  const named = [...page.matchAll(testCommand)].flatMap(([, files = '']) => files.split(' '))
  t.ok(named.length > 10)
  for (const file of named) t.ok(existsSync(join(root, file)), file)
  t.end()
})

t.test('every other command shows what it says', { skip: findProgram('curl').skip }, async (t) => {
  const [start = '', ...blocks] = blocksOf(page).filter((code) => !onInstallation(code))
  const settings = Object.fromEntries(
    start.split(' ').flatMap((word) => (word.includes('=') ? [word.split('=', 2) as [string, string]] : []))
  )
  const metricsPort = String(await freePort())
  const env = testEnvironment(await createTestDatabase(t), {
    ...settings,
    METRICS_PORT: metricsPort,
    NODE_ENV: 'production',
    JWT_SECRET: strongSecret,
    PASSWORD_PEPPER: otherStrongSecret,
    // the limits of the tests are off
    ...{ RATE_LIMIT: '', RATE_LIMIT_TENANT: '', RATE_LIMIT_AUTH: '' }
  })
  const server = await startServer(t, env)

  const commands = blocks
    .join('\n')
    .replace('http://localhost:8080', `http://localhost:${server.port}`)
    .replace('http://localhost:9464', `http://localhost:${metricsPort}`)
    .replaceAll(testCommand, 'true')
  // one server is started for each refusal; npm would take longer than the server
  const npm = `npm() { [ "$*" = start ] && "${process.execPath}" ${process.execArgv.join(' ')} src/server.ts; }`
  const result = await new Promise<{ failure: string; output: string }>((resolve) => {
    const shell = { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: temporaryFolder(t) } as NodeJS.ProcessEnv
    const options = { cwd: root, env: shell, maxBuffer: 2 ** 24 }
    execFile('bash', ['--norc', '-euxc', `${npm}\n${commands}`], options, (err, stdout, stderr) =>
      resolve({ failure: err ? stderr.slice(-2000) : '', output: stdout })
    )
  })
  t.equal(result.failure, '', 'the first command that does not show it comes last')
  const refused = result.output.match(/^ {2}[A-Z_]+: .*$/gm) ?? []
  t.strictSame(
    refused.map((line) => line.trim().split(':', 1)[0]),
    ['JWT_SECRET', 'DATABASE_URL', 'JWT_SECRET', 'CORS_ORIGINS']
  )
  t.match(result.output, /"action":"tenant\.registered"/)
})

import { readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  commandFile,
  createTestDatabase,
  elsewhere,
  root,
  run,
  startServer,
  temporaryFolder,
  testEnvironment
} from './harness.ts'
import { findBenchPackage, findProgram } from './parts.ts'

// rehearsal: load generators with the people of a seed

/*
 * The programs and commands of docs/load-testing.md work as they stand there.
 */

const page = readFileSync(join(root, 'docs', 'load-testing.md'), 'utf8')

/** The program of the page with this name. Its first line says the name. */
function programOf(name: string): string {
  const found = [...page.matchAll(/```(?:lua|js)\n(.*?)```/gs)].map(([, code = '']) => code)
  const program = found.find((code) => /^(?:--|\/\/) (\S+)\n/.exec(code)?.[1] === name)
  if (program === undefined) throw new Error(`the page has no ${name}`)
  return program
}

/** The arguments of the only command of the page that begins with this word. */
function argumentsOf(command: string): string[] {
  const line = page.split('\n').find((each) => each.startsWith(`${command} `))
  if (line === undefined) throw new Error(`the page does not show ${command}`)
  return line.split(' ').slice(1)
}

const wrk = findProgram('wrk')
const autocannon = findBenchPackage('autocannon')

t.test('load generators drive a server with the people of a seed', async (t) => {
  const database = await createTestDatabase(t)
  const env = testEnvironment(database)
  const dir = temporaryFolder(t)
  for (const name of ['me.lua', 'me.mjs']) writeFileSync(join(dir, name), programOf(name))
  const seed = argumentsOf('npm run seed')
    .slice(3)
    .join(' ')
    .replace('1000', '3')
    .replace('100', '4')
    .replace('tokens.json', join(dir, 'tokens.json'))
  await run(process.execPath, [...process.execArgv, commandFile('seed'), ...seed.split(' ')], {
    cwd: elsewhere,
    env: { ...process.env, ...env }
  })
  const server = await startServer(t, env)
  const api = `http://127.0.0.1:${server.port}`

  t.test('wrk', { skip: wrk.skip }, async (t) => {
    const args = argumentsOf('wrk').map((each) => each.replace('http://127.0.0.1:8080', api).replace('10s', '1s'))
    const { stdout } = await run(wrk.path, args, { cwd: dir })
    t.ok(Number(/(\d+) requests in/.exec(stdout)?.[1]) > 0, stdout)
    t.notMatch(stdout, 'Non-2xx')
  })
  t.test('autocannon', { skip: autocannon.skip }, async (t) => {
    symlinkSync(join(root, 'bench', 'node_modules'), join(dir, 'node_modules'))
    const settings = { ...process.env, API: api, SECONDS_TO_RUN: '1' }
    const { stdout } = await run(process.execPath, ['me.mjs'], { cwd: dir, env: settings })
    t.match(stdout, /\d+k? requests in/)
    t.notMatch(stdout, /non 2xx|errors/)
  })
  t.test('the program for k6 is one that can be parsed', async (t) => {
    writeFileSync(join(dir, 'mix.mjs'), programOf('mix.js'))
    await t.resolves(run(process.execPath, ['--check', 'mix.mjs'], { cwd: dir }))
  })
})

import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, cpSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import { connectWhenUp } from '../db/gate/start-up.ts'
import { readConfig } from '../src/config/config.ts'
import { readEnvironment } from '../src/config/env-file.ts'
import type { Environment } from '../src/config/environment.ts'
import { refuseTakenPorts } from '../src/config/ports.ts'
import { startFaultProxy } from './fault-proxy.ts'
import {
  commandFile,
  createTestDatabase,
  elsewhere,
  eventually,
  root,
  serverFile,
  startServer,
  testEnvironment,
  waitUntilReady
} from './harness.ts'
import { freePort } from './ports.ts'

// bounded in time: how long a database is waited for
// rehearsal: starts that can not succeed, as processes

/*
 * A start of the server or of a command that can't succeed: it prints one line that says what to do, exits with a code, and leaves
 * nothing behind.
 */

const scripts: Record<string, string> = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).scripts
/** The operator's commands by the name of their script. */
const commands = Object.entries(scripts).flatMap(([name, script]) => {
  const [, file] = /(src\/(?:cli\/\w+|server)\.ts)/.exec(script) ?? []
  return file === undefined ? [] : { name, file: join(root, file) }
})

type Ended = { code: number; stdout: string; stderr: string }
type Place = { cwd?: string; env?: Environment; prefix?: string[] }

/** Runs a file of the product until it ends. */
function run(file: string, args: string[] = [], { cwd = elsewhere, env = {}, prefix = [] }: Place = {}) {
  const [program = '', ...words] = [...prefix, process.execPath, ...process.execArgv, file, ...args]
  const options = { cwd, env: { PATH: process.env.PATH, HOME: process.env.HOME, ...env } as NodeJS.ProcessEnv }
  return new Promise<Ended>((resolve) =>
    execFile(program, words, { ...options, timeout: 60_000 }, (err, stdout, stderr) =>
      resolve({ code: err ? Number(err.code) : 0, stdout, stderr })
    )
  )
}

const isOneLine = (text: string) => /^[^\n]+\n$/.test(text) && !/\n\s+at /.test(text)

t.test('a database that comes up later is waited for, and said once', async (t) => {
  const urls = await createTestDatabase(t)
  const proxy = await startFaultProxy(t, Number(new URL(urls.app).port))
  const settings = { ...testEnvironment(urls), LOG_LEVEL: 'warn', DATABASE_URL: proxy.through(urls.serving) }
  const owner = { DATABASE_OWNER_URL: proxy.through(urls.owner) }
  for (const [who, env] of [
    ['a process that serves', settings],
    ['one that migrates before', { ...settings, ...owner }],
    ['several workers', { ...settings, WEB_CONCURRENCY: '2' }]
  ] as const) {
    await proxy.add({ type: 'refuse' })
    const server = await startServer(t, env, { ready: false })
    await eventually(() => server.output().includes('waiting for the database'), 30_000)
    // longer than three attempts in a row
    await sleep(1000)
    t.equal(server.child.exitCode, null, `${who} has not given up: ${server.output()}`)
    await proxy.clear()
    await waitUntilReady(server)
    t.equal(server.output().match(/waiting for the database/g)?.length, 1, `${who}: ${server.output()}`)
    server.child.kill('SIGTERM')
    await server.exited
  }
})

t.test('one that is starting says so, and is waited for', async (t) => {
  const urls = await createTestDatabase(t)
  const port = Number(new URL(urls.app).port)
  const text = 'SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0'
  const refusal = Buffer.concat([Buffer.from('E'), Buffer.alloc(4), Buffer.from(text)])
  refusal.writeInt32BE(4 + text.length, 1)
  let isStarting = true
  let asked = 0
  const gate = createServer((near) => {
    near.on('error', () => {})
    if (isStarting) {
      asked++
      near.once('data', () => near.end(refusal))
      return
    }
    const far = connect(port, '127.0.0.1')
    far.on('error', () => near.destroy())
    near.on('close', () => far.destroy())
    near.pipe(far).pipe(near)
  })
  await once(gate.listen(0, '127.0.0.1'), 'listening')
  t.teardown(() => gate.close())
  const url = new URL(urls.serving)
  url.port = String((gate.address() as AddressInfo).port)
  const env = { ...testEnvironment(urls), LOG_LEVEL: 'warn', DATABASE_URL: url.href }
  const server = await startServer(t, env, { ready: false })
  await eventually(() => asked > 3, 30_000)
  isStarting = false
  await waitUntilReady(server)
  server.child.kill('SIGTERM')
  await server.exited
})

t.test('what waiting does not mend ends the start at once', async (t) => {
  const urls = await createTestDatabase(t)
  const changed = (change: (url: URL) => void) => {
    const url = new URL(urls.app)
    change(url)
    return url.href
  }
  for (const [DATABASE_URL, reason] of [
    [changed((url) => (url.password = 'wrong')), /password/],
    [changed((url) => (url.username = 'nobody_here')), /nobody_here/],
    [changed((url) => (url.pathname = '/no_such_database')), /no_such_database/],
    [changed((url) => url.searchParams.set('sslmode', 'verify-full')), /SSL/]
  ] as const) {
    const env = { ...testEnvironment(urls), LOG_LEVEL: 'warn', DATABASE_URL, DATABASE_POOLER: 'none' }
    const { code, stderr, stdout } = await run(serverFile, [], { env: { ...env, PORT: String(await freePort()) } })
    t.equal(code, 1)
    t.match(stderr, reason)
    t.ok(isOneLine(stderr), stderr)
    t.notMatch(stderr + stdout, 'waiting for the database')
  }
})

t.test('nothing is waited for longer than that, and less and less often', async (t) => {
  const refused = Object.assign(new Error('connect ECONNREFUSED'), { code: 'ECONNREFUSED', syscall: 'connect' })
  let attempts = 0
  const waits: unknown[] = []
  const attempt = () => {
    attempts++
    return Promise.reject(new AggregateError([refused, refused]))
  }
  const connecting = connectWhenUp(attempt, (err) => waits.push(err), 1600)
  await t.rejects(connecting, { errors: [refused, refused] })
  t.equal(attempts, 5, 'after 0, 100, 300, 700 and 1500 ms')
  t.equal(waits.length, 1)
  const other = new Error('something else')
  await t.rejects(
    connectWhenUp(
      () => Promise.reject(other),
      () => t.fail('it waits')
    ),
    other
  )
})

/** A server that listens, and its port. */
async function takePort(t: Test): Promise<number> {
  const server = createServer()
  await once(server.listen(0, '127.0.0.1'), 'listening')
  t.teardown(() => server.close())
  return (server.address() as AddressInfo).port
}

t.test('a place that can not be listened on is said before anything is made', async (t) => {
  const taken = String(await takePort(t))
  const free = String(await freePort())
  const folder = t.testdir()
  const env = { DATA_DIR: folder, JWT_SECRET: 'x'.repeat(32), PORT: taken }
  const { code, stderr } = await run(serverFile, [], { env })
  t.equal(code, 78, stderr)
  t.match(stderr, new RegExp(`PORT: ${taken} is taken on 127.0.0.1: .*PORT=${Number(taken) + 1}\n$`))
  t.ok(isOneLine(stderr), stderr)
  t.strictSame(readdirSync(folder), [], 'no database was made')
  for (const [more, said] of [
    [{ PORT: free, METRICS_PORT: taken }, /METRICS_PORT: \d+ is taken .*METRICS_PORT=\d+$/],
    [{ PORT: free, METRICS_PORT: free }, /METRICS_PORT: \d+ is taken/],
    [{ PORT: free, HOST: '203.0.113.1' }, / HOST: 203\.0\.113\.1 is no address of this machine/],
    [{ PORT: free, METRICS_PORT: '9', METRICS_HOST: '203.0.113.1' }, /METRICS_HOST: 203\.0\.113\.1 is no address/]
  ] as const) {
    await t.rejects(refuseTakenPorts(readConfig({ ...env, ...more })), { message: said })
  }
  await refuseTakenPorts(readConfig({ ...env, PORT: free }))
  await refuseTakenPorts(readConfig({ ...env, PORT: free }))
})

t.test('a folder that can not be used is named', async (t) => {
  const folder = t.testdir({ file: '', locked: {} })
  const locked = join(folder, 'locked')
  chmodSync(locked, 0o500)
  // root can write to every folder
  const prefix = process.getuid?.() === 0 ? ['setpriv', '--bounding-set=-all', '--inh-caps=-all'] : []
  const env = { PORT: String(await freePort()) }
  const secret = { JWT_SECRET: 'x'.repeat(32) }
  for (const [DATA_DIR, more] of [
    [join(folder, 'file'), {}],
    [join(folder, 'file', 'below'), secret],
    [join(locked, 'below'), {}],
    [join(locked, 'below'), secret],
    [locked, secret]
  ] as const) {
    const { code, stderr } = await run(serverFile, [], { env: { ...env, ...more, DATA_DIR }, prefix })
    t.equal(code, 78, stderr)
    t.match(stderr, /DATA_DIR: \S+ can't be used \(E\w+\): let this user write there, or set another DATA_DIR\n$/)
    t.ok(isOneLine(stderr), stderr)
  }
  const { code, stderr } = await run(commandFile('tenant'), ['suspend', 'acme'], {
    env: { DATA_DIR: join(folder, 'file') },
    prefix
  })
  t.equal(code, 78)
  t.ok(isOneLine(stderr), stderr)
})

t.test('.env', async (t) => {
  const inFolder = (content: string | Buffer) => {
    const cwd = t.testdir()
    writeFileSync(join(cwd, '.env'), content)
    return cwd
  }

  t.test('is read by the server and by every command; what is set already wins', async (t) => {
    const cwd = inFolder('# mine\n\nexport DATABASE_POOL="many"\nLOG_LEVEL=loud # for now\nDATA_DIR=data\n')
    for (const { name, file } of commands) {
      if (name === 'openapi' || name === 'migrate' || name === 'doctor') continue
      const given = {
        ...{ tenant: ['suspend', 'x'], plan: ['list'], files: ['compare'], user: ['show', 'x'], rotate: ['status'] },
        aggios: ['tenants', 'list']
      }
      const words = (given as Record<string, string[]>)[name] ?? []
      const { code, stderr } = await run(file, words, { cwd })
      t.equal(code, 78, `${name}: ${stderr}`)
      t.match(stderr, /DATABASE_POOL: must.*\n.*LOG_LEVEL: must/, name)
    }
    // what is wrong with the settings is what the doctor has to say
    const report = await run(commandFile('doctor'), [], { cwd })
    t.match(report, { code: 4, stdout: /DATABASE_POOL: must.*LOG_LEVEL: must/s })
    const again = await run(commandFile('plan'), ['list'], { cwd, env: { LOG_LEVEL: 'info' } })
    t.match(again.stderr, 'DATABASE_POOL: must')
    t.notMatch(again.stderr, 'LOG_LEVEL')
    t.strictSame(readdirSync(cwd), ['.env'])
    const job = await run(commandFile('migrate'), [], { cwd: inFolder('DATABASE_OWNER_URL=mysql://x\n') })
    t.match(job, { code: 78, stderr: /DATABASE_OWNER_URL: must be a URL/ })
  })

  t.test('is what the product runs with', async (t) => {
    const urls = await createTestDatabase(t)
    const lines = Object.entries(testEnvironment(urls)).map(([name, value]) => `${name}=${value}`)
    const cwd = inFolder(`${lines.join('\r\n')}\r\n`)
    t.match(await run(commandFile('tenant'), ['suspend', 'nowhere'], { cwd }), {
      code: 1,
      stderr: 'there is no agency called nowhere\n'
    })
  })

  t.test('made of .env.example is as good as none', async (t) => {
    const cwd = inFolder(readFileSync(join(root, '.env.example')))
    const nothing = await run(commandFile('plan'), ['list'], { cwd: t.testdir(), env: { DATA_DIR: 'data' } })
    t.equal(nothing.code, 69)
    t.strictSame(await run(commandFile('plan'), ['list'], { cwd, env: { DATA_DIR: 'data' } }), nothing)
  })

  t.test('that says nothing, or something else, is refused with its line', async (t) => {
    const secret = 'b8Jc0wqk1Uo7mPz5vXr2Tn9Ye4Sa6Dg3'
    for (const [content, said] of [
      ['', /\.env: is empty: copy \.env\.example to it, or remove it$/],
      [' \n\n', /\.env: is empty/],
      [`PORT=8080\nJWT_SECRET ${secret}\n`, /\.env: line 2 is not NAME=value/],
      [`PORT=8080\n\nJWT_SECRET="${secret}\nHOST=127.0.0.1\n`, /\.env: line 3 is not/],
      ['{ "PORT": 8080 }', /\.env: line 1 is not/],
      ['PORT: 8080', /\.env: line 1 is not/],
      ['A="x" y', /\.env: line 1 is not/],
      [Buffer.from('PORT=8080\n', 'utf16le'), /\.env: line 1 is not/],
      ['# all is well\nPORT=8080\n<<<<<<< HEAD\n', /\.env: line 3 is not/]
    ] as const) {
      const message = String(readIn(inFolder(content)))
      t.match(message, said)
      t.ok(isOneLine(`${message}\n`), message)
      t.notMatch(message, secret)
    }
    const good = readIn(inFolder('A=1\nexport B = "x\ny" # z\nC=\n\nD=\'#\'\n  E=a=b'))
    t.match(good, { A: '1', B: 'x\ny', C: '', D: '#', E: 'a=b' }, 'what Node reads is not refused')
    t.strictSame(readIn(t.testdir()), { ...process.env }, 'there need be none')
    const cwd = t.testdir({ '.env': {} })
    for (const file of [serverFile, commandFile('migrate')]) {
      const { code, stderr } = await run(file, [], { cwd })
      t.equal(code, 78)
      t.match(stderr, /\.env: can't be read \(EISDIR\): .*\n$/)
      t.ok(isOneLine(stderr), stderr)
    }
  })
})

/** The environment that a folder's `.env` gives, or the message with which it is refused. */
function readIn(cwd: string): Environment | string {
  process.chdir(cwd)
  try {
    return { ...readEnvironment() }
  } catch (err) {
    return (err as Error).message
  } finally {
    process.chdir(elsewhere)
  }
}

t.test('a fresh clone without a network says so on one line', async (t) => {
  const clone = t.testdir({ cache: {}, src: { cli: {} } })
  for (const file of ['package.json', 'package-lock.json', 'src/cli/node.cjs'])
    cpSync(join(root, file), join(clone, file))
  const env = {
    // nothing listens there
    npm_config_registry: `http://127.0.0.1:${await freePort()}/`,
    npm_config_cache: join(clone, 'cache'),
    npm_config_fetch_retries: '0'
  }
  const { code, stdout, stderr } = await run(join(clone, 'src', 'cli', 'node.cjs'), [], { cwd: clone, env })
  t.equal(code, 1)
  t.equal(stdout, '')
  t.match(
    stderr,
    /^installing the packages .*\nthe packages could not be fetched \(ECONNREFUSED\): .*run this again\n$/
  )

  writeFileSync(join(clone, 'package-lock.json'), 'no lock')
  const broken = await run(join(clone, 'src', 'cli', 'node.cjs'), [], { cwd: clone, env })
  t.match(broken, {
    code: 1,
    stdout: '',
    stderr: /\nthe packages could not be installed \(.*\): run npm ci, which says why\n$/
  })
  for (const [name, script] of Object.entries(scripts)) {
    if (!/"\$node"/.test(script)) continue
    t.match(script, /^node=\$\(node src\/cli\/node\.cjs\) && /, `${name} installs what is missing`)
  }
})

t.test('every command', async (t) => {
  const cwd = t.testdir()
  t.ok(commands.length >= 7, 'those of package.json')
  const subcommands: Record<string, string[]> = {
    files: ['compare', 'accept-store'],
    plan: ['list', 'set'],
    tenant: ['suspend', 'resume', 'plan']
  }
  for (const { name, file } of commands) {
    const called = [[], ...(subcommands[name] ?? []).map((each) => [each])]
    const tried = called.map(async (words) => {
      const spelled = ['npm run', name, '--', ...words].join(' ')
      const help = await run(file, [...words, '--help'], { cwd })
      t.match(help, { code: 0, stderr: '' }, `${spelled} --help`)
      t.ok(help.stdout.startsWith(`Usage: ${spelled}`), help.stdout)
      const unknown = await run(file, [...words, '--frobnicate'], { cwd })
      t.equal(unknown.code, 2, `${spelled} --frobnicate`)
      t.match(unknown.stderr, "unknown option '--frobnicate'")
      t.ok(isOneLine(unknown.stderr), unknown.stderr)
    })
    await Promise.all(tried)
    const word = await run(file, ['frobnicate'], { cwd })
    t.equal(word.code, 2, name)
    t.match(word.stderr, /unknown (?:word|command) 'frobnicate'/)
    t.ok(isOneLine(word.stderr), word.stderr)
  }
  t.strictSame(readdirSync(cwd), [], 'and nothing is made')
  t.match(await run(commandFile('tenant'), ['plan', 'acme', 'pro', 'now']), { code: 2, stderr: /unknown word 'now'/ })
  t.match(await run(commandFile('tenant'), ['suspend']), { code: 2, stderr: /missing required argument 'slug'/ })
})

t.test('a command that can not reach its database says why on one line', async (t) => {
  const env = { DATABASE_URL: `postgres://aggios_app@localhost:${await freePort()}/aggios`, JWT_SECRET: 'x'.repeat(32) }
  const { code, stderr } = await run(commandFile('plan'), ['list'], { env })
  t.equal(code, 69)
  t.match(stderr, /^the database can not be reached: connect ECONNREFUSED/)
  t.ok(isOneLine(stderr), stderr)
})

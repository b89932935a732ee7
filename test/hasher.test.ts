import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import argon2 from 'argon2'
import t, { type Test } from 'tap'
import { buildApp } from '../src/app.ts'
import { argon2 as chosen, loadArgon2, packages } from '../src/auth/argon2.ts'
import { createHasher } from '../src/auth/hasher.ts'
import { createPasswords, parameters } from '../src/auth/passwords.ts'
import { readConfig } from '../src/config/config.ts'
import { createKeyRing } from '../src/keys.ts'
import {
  createTenant,
  createTestDatabase,
  eventually,
  password,
  post,
  root,
  type Server,
  send,
  startServer,
  testEnvironment
} from './harness.ts'
import { stopwatch } from './machine.ts'

// bounded in time: answers while passwords are hashed
// rehearsal: subprocesses that hash, under load

/*
 * The packages that hash passwords, and the subprocess of lower priority that does it with one of them: it does what the package does, its death fails no request, and it never
 * outlives the process that started it.
 */

if (!existsSync('/proc/self/stat')) {
  t.plan(0, 'processes are looked at in /proc, and there is none here')
  process.exit()
}

const secret = Buffer.from('a pepper of the tests')
const options = { ...parameters, secret }
const niceness = 10

/** The fields of /proc/…/stat of a process or a thread, from the third on. */
function statOf(path: string): string[] {
  const text = readFileSync(`/proc/${path}/stat`, 'utf8')
  return text.slice(text.lastIndexOf(')') + 2).split(' ')
}
const nicenessOf = (path: string) => Number(statOf(path)[16])

function isAlive(pid: number): boolean {
  try {
    return statOf(String(pid))[0] !== 'Z'
  } catch {
    return false
  }
}

/** The hashing subprocesses of a process. */
function hashersOf(pid: number | undefined): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ').map(Number)
  return children.filter((child) => child > 0 && isAlive(child) && commandOf(child).includes('hasher-process.ts'))
}
const commandOf = (pid: number) => readFileSync(`/proc/${pid}/cmdline`, 'latin1')

const hashingThreads = (pid: number) =>
  readdirSync(`/proc/${pid}/task`)
    .map((tid) => `${pid}/task/${tid}`)
    .filter((path) => readFileSync(`/proc/${path}/comm`, 'utf8').startsWith('libuv'))

/** Hashes until a subprocess hashes, which has threads for it then. Resolves to its pid. */
async function untilReady(hashOnce: () => Promise<unknown>, ofProcess: number | undefined = process.pid) {
  let found: number | undefined
  await eventually(async () => {
    await hashOnce()
    const [pid] = hashersOf(ofProcess)
    found = pid !== undefined && hashingThreads(pid).length > 0 ? pid : undefined
    return found !== undefined
  }, 20_000)
  return found as number
}

const groupOf = (pid: number | 'self') => `/proc/${pid}/autogroup`

type Warning = [details: object, message: string]

/** A hasher whose subprocess has started. */
async function startHasher(t: Test, width = 2) {
  const warnings: Warning[] = []
  // the subprocess of the test before may still be ending
  await eventually(() => hashersOf(process.pid).length === 0)
  const hasher = createHasher({ concurrency: width, log: { warn: (...said) => void warnings.push(said) } })
  t.teardown(hasher.close)
  const pid = await untilReady(() => hasher.hash(password, options))
  return { hasher, pid, warnings }
}

t.test('each package takes the hashes of the others, so that any of them can take over', async (t) => {
  const cheap = { memoryCost: 64, timeCost: 1, parallelism: 1 }
  const words = {
    ASCII: password,
    'two spellings of one letter': 'o\u0308 and \u00f6',
    'another script': '\u5bc6\u7801\u5bc6\u7801\u5bc6\u7801',
    'the longest': '\u{1f600}'.repeat(128),
    'half a character': `half ${'\u{1f600}'[0]} of it`,
    'a byte of zero': 'before\u0000after',
    nothing: ''
  }
  // the current cost, the one before which test/passwords.test.ts has, and one of several lanes
  const costs = [parameters, { memoryCost: 8192, timeCost: 1, parallelism: 1 }, { ...cheap, parallelism: 2 }]
  const all = await Promise.all(packages.map((load) => load()))
  t.strictSame(
    all.map(({ name }) => name),
    ['node-rs', 'argon2']
  )
  const cases = [
    ...Object.entries(words).map(([title, word]) => ({ title, word, cost: cheap })),
    ...costs.map((cost) => ({ title: JSON.stringify(cost), word: words['two spellings of one letter'], cost }))
  ]
  for (const maker of all) {
    for (const { title, word, cost } of cases) {
      const stored = await maker.hash(word, { ...cost, secret })
      for (const reader of all) {
        const said = `${title}: ${maker.name}, read by ${reader.name}`
        const verdicts = await Promise.all([
          reader.verify(stored, word, { secret }),
          reader.verify(stored, `${word}.`, { secret }),
          reader.verify(stored, word, { secret: Buffer.from('another pepper') })
        ])
        t.strictSame(verdicts, [true, false, false], said)
        t.equal(reader.needsRehash(stored, cost), false, said)
        for (const change of ['memoryCost', 'timeCost', 'parallelism'] as const)
          t.equal(reader.needsRehash(stored, { ...cost, [change]: cost[change] + 1 }), true, `${said}, ${change}`)
        t.equal(reader.needsRehash(stored.replace('argon2id', 'argon2i'), cost), true, `${said}, another algorithm`)
      }
    }
  }
})

t.test('the fastest package that loads is used', async (t) => {
  const folder = join(root, 'node_modules/@node-rs')
  const isPrebuilt = existsSync(folder) && readdirSync(folder).some((name) => name.startsWith('argon2-'))
  t.equal(chosen.name, isPrebuilt ? 'node-rs' : 'argon2')
  const missing = new Error('no build for this platform')
  const [, second] = packages as [unknown, () => Promise<typeof chosen>]
  const found = await loadArgon2([() => Promise.reject(missing), second])
  t.match(found, { argon2: { name: 'argon2' }, failures: [missing] })
  await t.rejects(loadArgon2([() => Promise.reject(missing)]), { errors: [missing] })
})

t.test('what it says is what the package says', async (t) => {
  const { hasher, pid, warnings } = await startHasher(t)
  const ticks = () => Number(statOf(String(pid))[11])
  const before = ticks()
  const stored = await hasher.hash(password, options)
  t.match(stored, /^\$argon2id\$v=19\$m=19456,(t=2,p=1|p=1,t=2)\$/)
  t.equal(await argon2.verify(stored, password, { secret }), true, 'good for the package')
  t.notSame(await hasher.hash(password, options), stored, 'each has a salt of its own')
  for (const each of [stored, await argon2.hash(password, options)]) {
    t.equal(await hasher.verify(each, password, { secret }), true)
    t.equal(await hasher.verify(each, `${password}.`, { secret }), false)
    t.equal(await hasher.verify(each, password, { secret: Buffer.from('another pepper') }), false)
  }
  const ofPackage = await chosen.verify('no hash', password, { secret }).catch((err: Error) => err)
  t.ok(ofPackage instanceof Error)
  await t.rejects(hasher.verify('no hash', password, { secret }), { message: (ofPackage as Error).message })
  t.ok(ticks() > before, 'and it was the other process that worked')
  t.strictSame(hashersOf(process.pid), [pid], 'the same all along')
  t.strictSame(warnings, [])
})

t.test('its priority is lower, and it knows no secret but what it is sent', async (t) => {
  // empty for a process whose session is still that of the machine's first
  const ours = () => [
    nicenessOf(String(process.pid)),
    existsSync(groupOf('self')) && readFileSync(groupOf('self'), 'utf8')
  ]
  const before = ours()
  const { pid } = await startHasher(t)
  t.equal(nicenessOf(String(pid)), niceness)
  const threads = hashingThreads(pid)
  t.equal(threads.length, 2, 'one for each job')
  for (const path of threads) t.equal(nicenessOf(path), niceness)
  // the pid and the session, which is the sixth field
  t.equal(Number(statOf(String(pid))[3]), pid, 'a session of its own')
  if (existsSync(groupOf(pid)))
    await eventually(() => readFileSync(groupOf(pid), 'utf8').endsWith(` nice ${niceness}\n`))
  t.strictSame(ours(), before, 'and ours is what it was')
  const names = readFileSync(`/proc/${pid}/environ`, 'latin1').match(/(?<=^|\0)\w+(?==)/g) ?? []
  t.strictSame(
    // variables that the test runner gives to every process
    names.filter((name) => name !== 'NODE_OPTIONS' && !name.startsWith('_TAPJS')).sort(),
    ['NODE_CHANNEL_FD', 'NODE_CHANNEL_SERIALIZATION_MODE', 'UV_THREADPOOL_SIZE']
  )
  t.notMatch(commandOf(pid), /pepper|horse/)
})

t.test('killed while it hashes, it fails nobody, and is replaced', async (t) => {
  const { hasher, pid, warnings } = await startHasher(t)
  const passwords = await createPasswords(createKeyRing(['a pepper'], 'pepper'), hasher, 2, 64)
  const stored = await passwords.hash(password)
  const work = Array.from({ length: 10 }, () => [
    passwords.verify(password, stored),
    passwords.verify('another one', stored),
    passwords.hash(password)
  ]).flat()
  await sleep(30)
  t.equal(passwords.stats().running, 2)
  process.kill(pid, 'SIGKILL')
  const results = await Promise.all(work)
  for (let i = 0; i < results.length; i += 3) {
    t.strictSame(results.slice(i, i + 2), [true, false])
    t.equal(await passwords.verify(password, results[i + 2] as typeof stored), true)
  }
  t.match(warnings, [[{ pid, signal: 'SIGKILL' }, 'the process that hashes passwords ended and is replaced']])
  t.not(await untilReady(() => hasher.hash(password, options)), pid)
  t.equal(warnings.length, 1)
})

t.test('stuck, it holds nobody up for longer than it may', async (t) => {
  const { hasher, pid, warnings } = await startHasher(t)
  process.kill(pid, 'SIGSTOP')
  const [startedAt, elapsed] = [performance.now(), stopwatch()]
  t.match(await hasher.hash(password, options), /^\$argon2id\$/)
  const ms = performance.now() - startedAt
  t.ok(ms > 9000 && elapsed() < 15_000, `${ms.toFixed()} ms`)
  t.match(warnings, [[{ pid, reason: /10000 ms/ }, String]])
  await eventually(() => !isAlive(pid))
})

t.test('signals that are meant for the server do not end it', async (t) => {
  const { hasher, pid } = await startHasher(t)
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.kill(pid, signal)
  await hasher.hash(password, options)
  await sleep(200)
  t.strictSame(hashersOf(process.pid), [pid])
})

t.test('where it can not be started, passwords are hashed all the same, and that is said once', async (t) => {
  const broken = join(t.testdir(), 'broken.mjs')
  writeFileSync(broken, "import { setPriority } from 'node:os'\nsetPriority(1)\nprocess.exit(3)\n")
  const warnings: Warning[] = []
  const log = { warn: (...said: Warning) => void warnings.push(said) }
  const hasher = createHasher({ concurrency: 2, log, program: broken })
  t.teardown(hasher.close)
  const stored = await hasher.hash(password, options)
  await eventually(() => warnings.length > 0)
  t.match(warnings, [[{ code: 3 }, /^no process to hash passwords could be started/]])
  t.equal(await argon2.verify(stored, password, { secret }), true)
  t.equal(await hasher.verify(stored, password, { secret }), true)
  t.equal(await hasher.verify(stored, 'another one', { secret }), false)
  // longer than its restart delay
  await sleep(5200)
  t.equal(await hasher.verify(stored, password, { secret }), true)
  await sleep(1000)
  t.equal(warnings.length, 1, 'tried again, and not said again')
})

t.test('a process that has nothing else to do ends', async (t) => {
  const program = join(t.testdir(), 'asks.mjs')
  writeFileSync(
    program,
    `import { createHasher } from ${JSON.stringify(import.meta.resolve('../src/auth/hasher.ts'))}
    const hasher = createHasher({ concurrency: 1, log: { warn: (details) => process.stdout.write(JSON.stringify(details)) } })
    for (const end = Date.now() + 1500; Date.now() < end;) await hasher.hash('a password', {})
    process.stdout.write('done')`
  )
  const child = spawn(process.execPath, [program], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk
  })
  const pids = new Set<number>()
  const looking = setInterval(() => {
    if (isAlive(child.pid as number)) for (const pid of hashersOf(child.pid)) pids.add(pid)
  }, 50)
  t.teardown(() => clearInterval(looking))
  t.strictSame(await once(child, 'exit'), [0, null])
  clearInterval(looking)
  t.equal(text, 'done')
  t.equal(pids.size, 1)
  await eventually(() => ![...pids].some(isAlive), 2000)
})

t.test('the application ends it, and hashes of many people pass through it', async (t) => {
  const app = buildApp(readConfig(testEnvironment(await createTestDatabase(t))))
  t.teardown(() => app.close())
  await app.ready()
  const acme = await createTenant(app, 'acme')
  const login = (word: string) =>
    send(app, 'localhost', post('/auth/login', { email: acme.owner.email, password: word }))
  const pid = await untilReady(() => login(password))
  const replies = await Promise.all(['a wrong one', password, 'a wrong one', password].map(login))
  t.strictSame(
    replies.map(({ statusCode }) => statusCode),
    [401, 200, 401, 200]
  )
  await app.close()
  await eventually(() => !isAlive(pid), 2000)
})

t.test('a server', async (t) => {
  const urls = await createTestDatabase(t)
  const owner = { tenant: { name: 'Acme', slug: 'acme' }, name: 'Ada', email: 'ada@acme.example', password }
  const headers = { 'content-type': 'application/json' }
  const ask = (server: Server, path: string, body: object) =>
    server.fetch(`/api/v1${path}`, { method: 'POST', headers, body: JSON.stringify(body) })
  const login = async (server: Server) => (await ask(server, '/auth/login', { email: owner.email, password })).status
  const start = () => startServer(t, testEnvironment(urls, { LOG_LEVEL: 'warn' }))
  const first = await start()

  t.test('starts none before there is something to hash', async (t) => {
    t.strictSame(hashersOf(first.child.pid), [])
    t.equal((await ask(first, '/auth/register', owner)).status, 201)
  })

  t.test('answers every sign-in while it is killed', async (t) => {
    const pid = await untilReady(() => login(first), first.child.pid)
    const signingIn = Promise.all(Array.from({ length: 20 }, () => login(first)))
    await sleep(100)
    process.kill(pid, 'SIGKILL')
    t.strictSame(new Set(await signingIn), new Set([200]))
    t.match(first.output(), /the process that hashes passwords ended and is replaced/)
    t.not(await untilReady(() => login(first), first.child.pid), pid)
  })

  t.test('leaves none behind when it is told to end', async (t) => {
    const [pid] = hashersOf(first.child.pid)
    const signingIn = login(first)
    await sleep(20)
    first.child.kill('SIGTERM')
    t.equal(await signingIn, 200)
    t.strictSame(await first.exited, { code: 0, signal: null })
    await eventually(() => !isAlive(pid as number), 2000)
  })

  t.test('leaves none behind when it is killed at work', async (t) => {
    const server = await start()
    const pid = await untilReady(() => login(server), server.child.pid)
    const cut = Promise.allSettled(Array.from({ length: 10 }, () => login(server)))
    await sleep(100)
    server.child.kill('SIGKILL')
    await server.exited
    await cut
    const ms = await eventually(() => !isAlive(pid), 5000)
    t.ok(ms < 2000, `it ended after ${ms} ms`)
  })
})

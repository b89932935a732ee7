import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { DatabaseUrls } from './databases.ts'
import {
  allRows,
  clientFolder,
  createTestDatabase,
  password,
  run,
  startServer,
  type Tokens,
  testEnvironment
} from './harness.ts'
import { stopwatch } from './machine.ts'

// bounded in time: how long generated programs take
// rehearsal: generated clients in other languages

/** Skips a test if a build that it needs is missing. If CI is "true", the test runs and fails. */
function needs(path: string, command: string) {
  const present = existsSync(join(clientFolder, path)) || process.env.CI === 'true'
  return { skip: present ? false : `client/${path} is not there: ${command}` }
}
const needsTypeScript = needs('dist/index.js', 'npm --prefix client ci && npm --prefix client run build')

type Send = (request: Request) => Promise<Response>
type Reply = { data?: unknown; error?: { code: string }; response: Response }
type Call = (path: string, init?: object) => Promise<Reply>
type Client = {
  GET: Call
  POST: Call
  PATCH: Call
  register(body: object): Promise<Tokens & { user: { id: string }; tenant: { id: string } }>
  signIn(body: object): Promise<Tokens>
  signOut(): Promise<void>
  switchTenant(slug: string): Promise<Tokens>
  uploadFile(content: Blob, options?: object): Promise<{ id: string; name: string; size: number; purpose: string }>
  downloadFile(id: string): Promise<Blob>
}
type Store = { read(): Tokens | undefined; write(tokens: Tokens | undefined): void }
type Problem = Error & {
  code: string
  status: number
  errors: { path: string }[]
  retryAfter?: number
  request_id: string
}
type Options = { store?: Store; fetch?: Send; retry?: object; onSignedOut?(reason: Problem): void }
type Package = {
  createAggiosClient(options: Options & { baseUrl: string }): Client
  localStorageStore(key: string, storage: object): Store
  memoryStore(): Store
  ProblemError: new () => Problem
  unwrap(reply: Promise<Reply>): Promise<Record<string, unknown>>
}

const mePath = '/api/v1/users/me'
const refreshPath = '/api/v1/auth/refresh'
const isRefresh = (request: Request) => new URL(request.url).pathname === refreshPath

/** Starts a server, and loads the package as it is published. It must have been built. */
async function startWithClient(t: Test, env = {}) {
  const database = await createTestDatabase(t)
  const { port } = await startServer(t, testEnvironment(database, env))
  const baseUrl = `http://127.0.0.1:${port}`
  const built = join(clientFolder, 'dist', 'index.js')
  const aggios = (await import(built)) as Package
  return {
    ...aggios,
    baseUrl,
    database,
    connect: (options: Options = {}) => aggios.createAggiosClient({ baseUrl, ...options })
  }
}

const owner = (slug: string) => ({
  tenant: { name: `The ${slug} agency`, slug },
  name: 'Ada',
  email: `ada@${slug}.example`,
  password
})

/** How often the newest session was refreshed, from the database. */
async function rotations(database: DatabaseUrls): Promise<number> {
  const [session] = await allRows(database, 'select counter from sessions order by id desc limit 1')
  return session.counter
}

/** A `fetch` that records each request and its result. `fault` can take the place of the network. */
function watched(fault: (request: Request, sent: string[]) => Promise<Response> | undefined = () => undefined) {
  const sent: string[] = []
  const statuses: number[] = []
  const send: Send = async (request) => {
    sent.push(new URL(request.url).pathname)
    const reply = await (fault(request, sent) ?? fetch(request))
    statuses.push(reply.status)
    return reply
  }
  return { send, sent, statuses, refreshes: () => sent.filter((path) => path === refreshPath).length }
}

/** A token that the client takes for expired. */
const outdated = (tokens: Tokens | undefined) => ({ ...(tokens as Tokens), access_token: 'outdated' })

t.test('the TypeScript client', needsTypeScript, async (t) => {
  const { connect, database, localStorageStore, memoryStore, ProblemError, unwrap } = await startWithClient(t)
  const me = (client: Client) => unwrap(client.GET(mePath))
  const caught = async (work: Promise<unknown>): Promise<Problem> => {
    const err = await work.then(
      () => 'it did not throw',
      (err) => err
    )
    if (!(err instanceof ProblemError)) throw err
    return err
  }
  const signedUp = async (slug: string, options: Options = {}) => {
    const client = connect(options)
    await client.register(owner(slug))
    return client
  }

  t.test('signs up, out and in, and goes on in another agency', async (t) => {
    const client = connect()
    t.match(await caught(me(client)), { code: 'unauthenticated', status: 401 })
    const { user, tenant } = await client.register(owner('acme'))
    t.match(await me(client), { id: user.id, tenant_id: tenant.id, role: 'owner' })
    await client.signOut()
    await client.signOut()
    t.match(await caught(me(client)), { code: 'unauthenticated' })

    await client.signIn({ email: owner('acme').email, password })
    const other = await unwrap(client.POST('/api/v1/tenants', { body: { name: 'Another', slug: 'another' } }))
    t.match(await me(client), { tenant_id: tenant.id })
    await client.switchTenant('another')
    t.match(await me(client), { tenant_id: other.id })
  })

  t.test('sends files and gets them back', async (t) => {
    const client = connect()
    await client.register(owner('filing'))
    const content = new Blob(['# Grüße'], { type: 'text/markdown' })
    const file = await client.uploadFile(content, { name: 'Grüße.md', purpose: 'contract' })
    t.match(file, { name: 'Grüße.md', purpose: 'contract', size: content.size })
    const back = await client.downloadFile(file.id)
    t.equal(await back.text(), '# Grüße')
    t.equal(back.type, 'text/markdown')
    await t.rejects(client.uploadFile(content, { sha256: '0'.repeat(64) }), { code: 'validation_failed' })
    await t.rejects(client.downloadFile(file.id.replace(/.$/, 'x')), { code: 'validation_failed' })
  })
  t.test('throws problems, with what is wrong and what to quote', async (t) => {
    const { email: _, ...rest } = owner('B_d')
    const invalid = await caught(connect().register(rest))
    t.match(invalid, { code: 'validation_failed', status: 400, request_id: /./ })
    t.ok(invalid.errors.some(({ path }) => path.startsWith('/body')))
    t.ok(invalid.errors.some(({ path }) => path === '/body/tenant/slug'))
    t.match(await caught(connect().signIn({ email: 'nobody@example.com', password })), { code: 'invalid_credentials' })

    const page = async () => new Response('<h1>Bad gateway</h1>', { status: 502 })
    t.match(await caught(me(connect({ fetch: page }))), { code: 'unexpected_reply', status: 502, errors: [] })
  })

  t.test('refreshes once for ten calls at once', async (t) => {
    const { send, sent, refreshes } = watched()
    const store = memoryStore()
    const client = await signedUp('ten', { fetch: send, store })
    store.write(outdated(store.read()))
    const slugs = Array.from({ length: 10 }, (_, index) => `ten-${index}`)
    const create = (slug: string) => unwrap(client.POST('/api/v1/tenants', { body: { name: 'One of ten', slug } }))
    const replies = await Promise.all(slugs.map(create))
    t.strictSame(
      replies.map(({ slug }) => slug),
      slugs,
      'each body was sent again'
    )
    t.equal(refreshes(), 1)
    t.equal(sent.length, 1 + 10 + 1 + 10)
    t.equal(await rotations(database), 1)
  })

  t.test('refreshes once for several tabs', async (t) => {
    const { send, refreshes } = watched()
    const kept = new Map<string, string>()
    const storage = {
      getItem: (key: string) => kept.get(key) ?? null,
      setItem: (key: string, value: string) => void kept.set(key, value),
      removeItem: (key: string) => void kept.delete(key)
    }
    // like tabs, they share only the storage and the locks of the platform
    const tabs = Array.from({ length: 3 }, () => connect({ fetch: send, store: localStorageStore('tokens', storage) }))
    await (tabs[0] as Client).register(owner('tabs'))
    kept.set('tokens', JSON.stringify(outdated(JSON.parse(kept.get('tokens') as string))))
    for (const each of await Promise.all(tabs.map(me))) t.match(each, { role: 'owner' })
    t.equal(refreshes(), 1)
    t.equal(await rotations(database), 1)
    await (tabs[0] as Client).signOut()
    t.match(await caught(me(tabs[2] as Client)), { code: 'unauthenticated' }, 'signed out is signed out in all')
    t.equal(kept.size, 0)
  })

  t.test('recovers from a refresh whose reply was lost', async (t) => {
    let lost = 0
    const { send, refreshes } = watched((request) => {
      if (!isRefresh(request) || lost++ > 0) return undefined
      return fetch(request).then(() => Promise.reject(new TypeError('the connection was lost')))
    })
    const store = memoryStore()
    const client = await signedUp('lost', { fetch: send, store })
    store.write(outdated(store.read()))
    t.match(await me(client), { role: 'owner' })
    t.equal(refreshes(), 2)
    t.equal(await rotations(database), 1, 'the same successor')
    store.write(outdated(store.read()))
    t.match(await me(client), { role: 'owner' }, 'and so on')
  })

  t.test('stays signed in while the network is away', async (t) => {
    let away = false
    const { send } = watched((request) => {
      return away && isRefresh(request) ? Promise.reject(new TypeError('there is no network')) : undefined
    })
    const store = memoryStore()
    const client = await signedUp('away', { fetch: send, store, onSignedOut: () => t.fail('signed out') })
    const tokens = outdated(store.read())
    store.write(tokens)
    away = true
    await t.rejects(Promise.all([me(client), me(client)]), { message: 'there is no network' })
    t.strictSame(store.read(), tokens)
    away = false
    t.match(await me(client), { role: 'owner' })
  })

  t.test('signs out when the server says so, once for all calls', async (t) => {
    const signOutOf = async (slug: string, spoil: (store: Store, client: Client) => Promise<void>) => {
      const reasons: string[] = []
      const store = memoryStore()
      const client = await signedUp(slug, { store, onSignedOut: ({ code }) => reasons.push(code) })
      await spoil(store, client)
      const refusals = await Promise.all([1, 2, 3].map(() => caught(me(client))))
      t.equal(store.read(), undefined)
      t.match(await caught(me(client)), { code: 'unauthenticated' })
      return { reasons, codes: refusals.map(({ code }) => code) }
    }

    const reused = await signOutOf('reused', async (store, client) => {
      const first = store.read()
      for (const _ of [1, 2]) {
        store.write(outdated(store.read()))
        await me(client)
      }
      store.write(outdated(first))
    })
    const reuse = 'refresh_token_reused'
    t.strictSame(reused, { reasons: [reuse], codes: [reuse, reuse, reuse] })

    const forged = await signOutOf('forged', async (store) => {
      store.write({ ...outdated(store.read()), refresh_token: 'forged' })
    })
    t.strictSame(forged.reasons, ['invalid_refresh_token'])

    const elsewhere = await signOutOf('elsewhere', async (store) => {
      const { refresh_token } = store.read() as Tokens
      await connect().POST('/api/v1/auth/logout', { body: { refresh_token } })
    })
    t.strictSame(elsewhere.reasons, ['session_revoked'], 'by the call itself')
  })

  t.test('does not bring back the tokens of before', async (t) => {
    let release = () => {}
    const held = new Promise<void>((resolve) => {
      release = resolve
    })
    const { send, refreshes } = watched((request) => (isRefresh(request) ? held.then(() => fetch(request)) : undefined))
    const store = memoryStore()
    const client = await signedUp('before', { fetch: send, store })
    store.write(outdated(store.read()))
    const late = me(client)
    while (refreshes() === 0) await sleep(5)
    const signedOut = client.signOut()
    release()
    await signedOut
    await late.catch(() => {})
    t.equal(store.read(), undefined)
  })

  t.test('does not repeat a call for somebody else who has signed in meanwhile', async (t) => {
    await signedUp('next')
    const store = memoryStore()
    const { send, sent } = watched((request, before) => {
      if (request.method !== 'PATCH' || before.includes(refreshPath)) return undefined
      return fetch(request).then(async (refusal) => {
        await connect({ store }).signIn({ email: owner('next').email, password })
        return refusal
      })
    })
    const client = await signedUp('first', { fetch: send, store })
    store.write(outdated(store.read()))
    const rename = client.PATCH(mePath, { body: { name: 'First' } })
    t.match(await caught(unwrap(rename)), { code: 'invalid_token' })
    t.match(await me(client), { email: owner('next').email, name: 'Ada' })
    t.strictSame(sent, ['/api/v1/auth/register', mePath, mePath])
  })

  t.test('repeats after a 503 what may be sent twice, and nothing else', async (t) => {
    const client = await signedUp('busy')
    const tokens = await client.signIn({ email: owner('busy').email, password })
    const busyFirst = async (times: number, retryAfter = '0') => {
      const { send, statuses } = watched((_, sent) => {
        if (sent.length > times) return undefined
        return Promise.resolve(new Response(null, { status: 503, headers: { 'retry-after': retryAfter } }))
      })
      const store = memoryStore()
      store.write(tokens)
      return { client: connect({ fetch: send, store }), statuses }
    }
    const read = await busyFirst(2)
    t.match(await me(read.client), { role: 'owner' })
    t.strictSame(read.statuses, [503, 503, 200])
    const never = await busyFirst(3)
    t.match(await caught(me(never.client)), { status: 503, retryAfter: 0 })
    t.strictSame(never.statuses, [503, 503, 503])
    const long = await busyFirst(1, '11')
    t.match(await caught(me(long.client)), { status: 503, retryAfter: 11 }, 'longer than it waits')
    const write = await busyFirst(1)
    t.match(await caught(unwrap(write.client.PATCH(mePath, { body: { name: 'Ada' } }))), { status: 503 })
    t.strictSame(write.statuses, [503])
  })

  t.test('gives up waiting when the caller does', async (t) => {
    const busy = async () => new Response(null, { status: 503, headers: { 'retry-after': '5' } })
    const elapsed = stopwatch()
    const signal = AbortSignal.timeout(100)
    await t.rejects(connect({ fetch: busy }).GET(mePath, { signal }), { name: 'TimeoutError' })
    t.ok(elapsed() < 4000)
  })

  t.test('compiles for those who use it as it should, and for nobody else', async (t) => {
    const tsc = join(clientFolder, 'node_modules', 'typescript', 'bin', 'tsc')
    const { stdout } = await run(process.execPath, [tsc, '--project', 'typed'], { cwd: clientFolder }).catch(
      (err) => err
    )
    t.equal(stdout, '')
  })

  t.test('is published with what it needs and nothing of the server', async (t) => {
    const manifest = JSON.parse(readFileSync(join(clientFolder, 'package.json'), 'utf8'))
    const { stdout } = await run('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], { cwd: clientFolder })
    const files = JSON.parse(stdout)[0].files.map(({ path }: { path: string }) => path) as string[]
    for (const file of ['README.md', 'dist/index.js', 'dist/index.d.ts', 'dist/schema.d.ts'])
      t.ok(files.includes(file), file)
    const others = files.filter((file) => !file.startsWith('dist/'))
    t.strictSame(others.sort(), ['README.md', 'openapi.json', 'package.json'])

    const dist = join(clientFolder, 'dist')
    const imported = readdirSync(dist).flatMap((file) =>
      [...readFileSync(join(dist, file), 'utf8').matchAll(/from '([^']+)'/g)].map(([, from]) => from as string)
    )
    t.ok(imported.length > 10)
    t.strictSame([...new Set(imported.filter((from) => !from.startsWith('./')))], Object.keys(manifest.dependencies))
  })

  t.test('exports what its README imports', async (t) => {
    const readme = readFileSync(join(clientFolder, 'README.md'), 'utf8')
    const named = [...readme.matchAll(/import \{([^}]+)\} from '@aggios\/client'/g)]
      .flatMap(([, names = '']) => names.split(','))
      .map((name) => name.trim())
    const exported = Object.keys(await import(join(clientFolder, 'dist', 'index.js')))
    t.ok(named.includes('createAggiosClient'))
    t.strictSame(
      named.filter((name) => !exported.includes(name)),
      []
    )
  })
})

t.test(
  'the TypeScript client refreshes once for ten calls with a token that has expired',
  needsTypeScript,
  async (t) => {
    const { connect, memoryStore, unwrap, database } = await startWithClient(t, { ACCESS_TOKEN_TTL: '3' })
    const { send, statuses, refreshes } = watched()
    const store = memoryStore()
    const client = connect({ fetch: send, store })
    const { access_token } = await client.register(owner('acme'))
    const claims = JSON.parse(Buffer.from(access_token.split('.')[1] as string, 'base64url').toString())
    await sleep(claims.exp * 1000 - Date.now() + 50)
    const replies = await Promise.all(Array.from({ length: 10 }, () => unwrap(client.GET(mePath))))
    t.ok(replies.every(({ role }) => role === 'owner'))
    t.equal(refreshes(), 1)
    t.equal(statuses.filter((status) => status === 401).length, 10)
    t.equal(await rotations(database), 1)
  }
)

t.test('the TypeScript client waits as long as a 429 says', needsTypeScript, async (t) => {
  const { connect } = await startWithClient(t, { RATE_LIMIT_AUTH: '2/3s' })
  const times: { at: number; status: number; retryAfter: number }[] = []
  const send: Send = async (request) => {
    const startedAt = Date.now()
    const reply = await fetch(request)
    times.push({ at: startedAt, status: reply.status, retryAfter: Number(reply.headers.get('retry-after')) })
    return reply
  }
  const client = connect({ fetch: send })
  const credentials = { email: owner('acme').email, password }
  await client.register(owner('acme'))
  await client.signIn(credentials)
  t.match(await client.signIn(credentials), { token_type: 'Bearer' })
  t.strictSame(
    times.map(({ status }) => status),
    [201, 200, 429, 200]
  )
  const [refused, repeated] = times.slice(2) as [(typeof times)[0], (typeof times)[0]]
  t.ok(refused.retryAfter >= 1)
  t.ok(repeated.at - refused.at >= refused.retryAfter * 1000 - 5)

  t.test('or tells the caller when that is too long', async (t) => {
    const hasty = connect({ retry: { seconds: 0.5 } })
    const attempts = await Promise.allSettled(Array.from({ length: 4 }, () => hasty.signIn(credentials)))
    const refusals = attempts.flatMap((each) => (each.status === 'rejected' ? [each.reason as Problem] : []))
    t.ok(refusals.length >= 2)
    for (const refusal of refusals) {
      t.match(refusal, { code: 'rate_limited', status: 429 })
      t.ok(refusal.retryAfter !== undefined && refusal.retryAfter >= 1)
    }
  })
})

/** The output that each generated client must print after the flow. */
const flowOf = (name: string, slug = name) => `health: ok
register: ${slug} owner
wrong password: invalid_credentials
login: Bearer
me: ada@${name}.example
refresh: rotated
me: ada@${name}.example
logout: done
me: session_revoked
refresh: session_revoked
`

async function flow(t: Test, command: string, args: string[], env = {}): Promise<string> {
  const { port } = await startServer(t, testEnvironment(await createTestDatabase(t)))
  const options = { env: { ...process.env, ...env }, timeout: 60_000 }
  const { stdout, stderr } = await run(command, [...args, `http://127.0.0.1:${port}`], options).catch((err) => err)
  return stdout + stderr
}

t.test(
  'the generated Python client walks the flow',
  needs('generated/python-packages', 'npm run clients'),
  async (t) => {
    const path = ['python', 'python-packages'].map((folder) => join(clientFolder, 'generated', folder)).join(delimiter)
    t.equal(
      await flow(t, 'python3', [join(clientFolder, 'flows', 'python', 'flow.py')], { PYTHONPATH: path }),
      flowOf('python')
    )
  }
)

t.test(
  'the generated Kotlin client walks the flow',
  needs('generated/kotlin-build/classes', 'npm run clients'),
  async (t) => {
    const build = join(clientFolder, 'generated', 'kotlin-build')
    const path = [join(build, 'classes'), join(build, 'lib', '*')].join(delimiter)
    t.equal(await flow(t, 'java', ['-cp', path, 'FlowKt']), flowOf('kotlin'))
  }
)

t.test('the generated Java client walks the flow', needs('generated/java-build/lib', 'npm run clients'), async (t) => {
  const build = join(clientFolder, 'generated', 'java-build')
  const path = [join(build, 'classes'), join(build, 'lib', '*')].join(delimiter)
  t.equal(await flow(t, 'java', ['-cp', path, join(clientFolder, 'flows', 'java', 'Flow.java')]), flowOf('java'))
})

// an image without Go for the rest of CI has no Go client either
const goProgram = 'generated/go-build/flow'
const needsGo = existsSync(join(clientFolder, goProgram))
  ? {}
  : { skip: `client/${goProgram} is not there: npm run clients` }
t.test('the generated Go client walks the flow', needsGo, async (t) => {
  t.equal(await flow(t, join(clientFolder, goProgram), []), flowOf('go', 'go-agency'))
})

t.test('each of the other generated clients was made', needs('generated/php', 'npm run clients'), async (t) => {
  for (const name of ['csharp', 'dart', 'php', 'ruby', 'rust', 'swift']) {
    t.ok(readdirSync(join(clientFolder, 'generated', name)).length > 3, name)
  }
})

import { existsSync, readdirSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import t from 'tap'
import { readText, root } from './harness.ts'

/*
 * What the pages name exists: files, headings, commands, settings. The drawing of a request agrees with src/app.ts, and the table
 * of limits has every limit of the sources.
 */

const markdownIn = (folder: string) => readdirSync(join(root, folder)).filter((name) => name.endsWith('.md'))
const pages = [...markdownIn('.'), ...markdownIn('docs').map((name) => `docs/${name}`)]

/** The anchors of headings: lower case, no punctuation, hyphens for blanks. */
const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replaceAll(/[^\w\s-]/g, '')
    .trim()
    .replaceAll(' ', '-')
const anchorsOf = (text: string) => [...text.matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) => anchorOf(heading))

t.test('every link leads somewhere', async (t) => {
  for (const page of pages) {
    for (const [, target = '', anchor] of readText(page).matchAll(/\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)/g)) {
      const file = target === '' ? page : relative(root, join(root, dirname(page), target))
      t.ok(existsSync(join(root, file)), `${page}: ${target}`)
      if (anchor !== undefined) t.ok(anchorsOf(readText(file)).includes(anchor), `${page}: ${target}#${anchor}`)
    }
  }
})

t.test('every page is on the way in', async (t) => {
  const way = readText('docs/README.md')
  for (const page of markdownIn('docs').filter((name) => name !== 'README.md')) t.ok(way.includes(`(${page})`), page)
})

t.test('every file that is named exists', async (t) => {
  // CONTRIBUTING.md also names files that its walk creates; test/contributing.test.ts checks them
  for (const page of pages.filter((each) => each !== 'CONTRIBUTING.md')) {
    for (const [, path = ''] of readText(page).matchAll(
      /`((?:src|plugins|routes|db|test|bench|client)\/\w[\w./-]*)`/g
    )) {
      t.ok(existsSync(join(root, path)), `${page}: ${path}`)
    }
  }
})

t.test('every script that is named exists', async (t) => {
  const { scripts } = JSON.parse(readText('package.json')) as { scripts: Record<string, string> }
  for (const page of pages) {
    for (const [, script = ''] of readText(page).matchAll(/npm run ([a-z:]+)/g))
      t.ok(script in scripts, `${page}: ${script}`)
  }
})

t.test('the drawing of a request has its parts in the order of src/app.ts', async (t) => {
  const [, drawing = ''] = /## The way of a request\n.*?```\n(.*?)```/s.exec(readText('docs/architecture.md')) ?? []
  const registered = [...readText('src/app.ts').matchAll(/^ {2}app\.register\((\w+)/gm)].map(([, name]) => name)
  const [hooks = ''] = drawing.split('the guard of the route')
  const drawn = [...hooks.matchAll(/^(\w+) {2,}/gm)].map(([, name]) => name).filter((name) => registered.includes(name))
  t.strictSame(drawn, ['headers', 'requestBody', 'authentication', 'limits', 'hosts', 'cors'])
  t.strictSame(
    drawn,
    registered.filter((name) => drawn.includes(name))
  )
})

t.test('what is drawn of the guard is what may be answered', async (t) => {
  const catalogue = readText('src/http/problems.ts')
  const [, drawing = ''] = /## The way of a request\n.*?```\n(.*?)```/s.exec(readText('docs/architecture.md')) ?? []
  const codes = [...drawing.matchAll(/\b[a-z]+(?:_[a-z]+)+\b/g)].map(([code]) => code)
  t.ok(codes.length > 8)
  for (const code of codes) t.ok(catalogue.includes(`'${code}'`), code)
})

t.test('every limit in the sources has a row, or a reason to have none', (t) => {
  const found = ['src/app.ts', 'src/processes/serving.ts', 'src/processes/supervisor.ts', 'src/auth/passwords.ts']
    .concat('src/auth/hasher.ts', 'src/files/decoders.ts')
    .concat([
      'db/gate/pipeline.ts',
      'db/gate/gate.ts',
      'db/gate/replica.ts',
      'db/gate/start-up.ts',
      'plugins/infrastructure/database.ts',
      'plugins/auth/revocations.ts'
    ])
    .concat([
      'plugins/observability/health.ts',
      'plugins/tenancy/tenants.ts',
      'plugins/limits/attempts.ts',
      'plugins/infrastructure/redis.ts'
    ])
    .concat(['plugins/files/objects.ts', 'plugins/http/request-body.ts', 'plugins/maintenance/object-sweep.ts'])
    .concat(['src/files/store/object-store.ts', 'src/files/store/s3.ts', 'src/files/store/disk.ts'])
    .flatMap((path) =>
      [
        ...readText(path).matchAll(
          /\b(\w*(?:[tT]imeout\w*|Ms|Interval|Limit|InFlight|HeaderSize|depth|_timeout))\s*[:=]\s*[\d_]+/g
        )
      ].map(([, name]) => `${path} ${name}`)
    )
  const inTable = [
    ...['bodyLimit', 'connectionTimeout', 'keepAliveTimeout', 'headersTimeout'].map((name) => `src/app.ts ${name}`),
    ...['src/app.ts connectionsCheckingInterval', 'src/app.ts maxHeaderSize', 'src/auth/passwords.ts depth'],
    ...[
      'connectTimeoutMs',
      'silenceLimitMs',
      'reconnectDelayMs',
      'maxInFlight',
      'maxPauseMs',
      'statement_timeout',
      'lock_timeout'
    ].map((name) => `db/gate/pipeline.ts ${name}`),
    ...['acquireTimeoutMs', 'idleTimeoutMs', 'queryTimeoutMs', 'statement_timeout', 'lock_timeout'].map(
      (name) => `plugins/infrastructure/database.ts ${name}`
    ),
    ...[
      'plugins/infrastructure/database.ts idle_in_transaction_session_timeout',
      'plugins/auth/revocations.ts staleAfterMs'
    ],
    ...[
      'plugins/infrastructure/redis.ts commandTimeoutMs',
      'plugins/infrastructure/redis.ts connectTimeoutMs',
      'plugins/infrastructure/redis.ts restMs'
    ],
    ...['db/gate/gate.ts semaphoreTimeoutMs', 'db/gate/replica.ts staleAfterMs', 'db/gate/start-up.ts startTimeoutMs'],
    ...['src/processes/serving.ts crashTimeoutMs', 'src/processes/supervisor.ts reportTimeoutMs'],
    ...[
      'src/auth/hasher.ts answerTimeoutMs',
      'src/auth/hasher.ts restartDelayMs',
      'src/files/decoders.ts cpuMs',
      'src/files/decoders.ts wallMs'
    ],
    ...[
      'plugins/files/objects.ts shareMs',
      'plugins/files/objects.ts placeMs',
      'plugins/http/request-body.ts bodyTimeoutMs',
      'src/files/store/object-store.ts storeTimeoutMs'
    ],
    ...['src/files/store/s3.ts assemblyTimeoutMs', 'src/files/store/disk.ts forgottenAfterMs']
  ]
  // intervals and memories: they refuse or cut off no request
  const notLimits = [
    ...[
      'src/processes/serving.ts drainNoticeMs',
      'src/processes/serving.ts listenersCloseMs',
      'src/processes/serving.ts lingerMs',
      'src/processes/serving.ts quietMs',
      'src/processes/serving.ts pollMs',
      'src/processes/supervisor.ts stableMs',
      'src/processes/supervisor.ts maxRestartDelayMs'
    ],
    'db/gate/gate.ts disconnectWindowMs',
    ...['db/gate/start-up.ts firstPauseMs', 'db/gate/start-up.ts longestPauseMs'],
    ...['plugins/auth/revocations.ts intervalMs', 'plugins/tenancy/tenants.ts unknownForMs'],
    ...[
      'plugins/observability/health.ts freshForMs',
      'plugins/observability/health.ts patienceMs',
      'plugins/http/request-body.ts lingerMs'
    ],
    ...['plugins/files/objects.ts tidyIntervalMs', 'plugins/maintenance/object-sweep.ts intervalMs'],
    // off: plugins/http/request-body.ts bounds it by route
    'src/app.ts requestTimeout',
    // a start that reads a million revocations
    'src/app.ts pluginTimeout',
    'plugins/limits/limits.ts dayMs',
    ...[
      'plugins/infrastructure/redis.ts maxReconnectMs',
      'db/gate/replica.ts intervalMs',
      'db/gate/pipeline.ts batchMs'
    ]
  ]
  t.strictSame([...new Set(found)].sort(), [...inTable, ...notLimits].sort())
  t.end()
})

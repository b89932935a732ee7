import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { basename, dirname, join, relative } from 'node:path'
import t from 'tap'
import { catalogue } from '../src/http/problems.ts'
import { readText, root, temporaryFolder } from './harness.ts'

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
      /`((?:src|plugins|routes|db|deploy|test|bench|client)\/\w[\w./-]*)`/g
    )) {
      t.ok(existsSync(join(root, path)), `${page}: ${path}`)
    }
  }
})

t.test(
  'the old files of an emergency are kept by each attempt, and never mixed with those of another one',
  async (t) => {
    const [, words = ''] = /-v aggios_postgres:.*?\n {2}sh -c '(.*?)'/s.exec(readText('docs/backups.md')) ?? []
    const [from, to] = [temporaryFolder(t), temporaryFolder(t)]
    const keep = () => execFileSync('sh', ['-c', words.replaceAll('/from', from).replaceAll('/to', to)])
    writeFileSync(join(from, 'rows'), 'the original')
    keep()
    t.equal(readFileSync(join(to, 'rows'), 'utf8'), 'the original')
    t.strictSame(readdirSync(from), [], 'a restore needs an empty folder')
    writeFileSync(join(from, 'rows'), 'restored too early')
    t.throws(keep)
    t.equal(readFileSync(join(to, 'rows'), 'utf8'), 'the original')
    t.equal(readFileSync(join(from, 'rows'), 'utf8'), 'restored too early')
    t.match(
      readText('docs/backups.md'),
      /-v "aggios_postgres_\$\(date -u .*\):\/to"/,
      'so each has a volume of its own'
    )
  }
)

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
  t.strictSame(drawn, [
    ...['headers', 'requestBody', 'bearer', 'proofs', 'hosts', 'rates', 'concurrency', 'tenantLookup'],
    ...['keyLookups', 'spentProofs', 'cors']
  ])
  t.strictSame(
    drawn,
    registered.filter((name) => drawn.includes(name))
  )
})

t.test('what is drawn of the guard is what may be answered', async (t) => {
  const [, drawing = ''] = /## The way of a request\n.*?```\n(.*?)```/s.exec(readText('docs/architecture.md')) ?? []
  const codes = [...drawing.matchAll(/\b[a-z]+(?:_[a-z]+)+\b/g)].map(([code]) => code)
  t.ok(codes.length > 8)
  for (const code of codes) t.ok(catalogue.has(code), code)
})

/** Limits that a row of the table states, by the file that sets them. */
const inTable: Record<string, string> = {
  app: 'bodyLimit connectionTimeout keepAliveTimeout headersTimeout connectionsCheckingInterval maxHeaderSize',
  passwords: 'depth waitTimeoutMs',
  hasher: 'answerTimeoutMs restartDelayMs',
  decoders: 'cpuMs wallMs',
  gate: 'semaphoreTimeoutMs',
  pipeline: 'connectTimeoutMs silenceLimitMs reconnectDelayMs maxInFlight maxPauseMs statement_timeout lock_timeout',
  replica: 'staleAfterMs',
  'start-up': 'startTimeoutMs',
  database:
    'acquireTimeoutMs idleTimeoutMs queryTimeoutMs statement_timeout lock_timeout idle_in_transaction_session_timeout',
  'api-keys': 'refusalMs',
  'breached-passwords': 'lookupTimeoutMs cooldownMs',
  redis: 'commandTimeoutMs connectTimeoutMs cooldownMs',
  revocations: 'staleAfterMs',
  objects: 'ownerTimeoutMs slotTimeoutMs',
  'object-store': 'storeTimeoutMs',
  s3: 'assemblyTimeoutMs',
  disk: 'forgottenAfterMs',
  'request-body': 'bodyTimeoutMs',
  'event-stream': 'stalledMs',
  serving: 'crashTimeoutMs',
  supervisor: 'reportTimeoutMs'
}

/**
 * Numbers that have no row: they refuse or cut off no request (intervals, memories, time-outs of starts, stops and commands), or
 * bound one operation, whose documentation states them.
 */
const notLimits: Record<string, string> = {
  // requestTimeout is off, because request-body bounds it by route
  app: 'requestTimeout pluginTimeout',
  attempts: 'dayMs',
  gate: 'disconnectWindowMs',
  pipeline: 'batchMs',
  replica: 'intervalMs',
  'start-up': 'firstPauseMs longestPauseMs',
  redis: 'maxReconnectMs',
  revocations: 'intervalMs announceMs',
  // an older answer comes from the database
  memory: 'freshMs',
  tenants: 'unknownSlugMs',
  objects: 'stalePartsIntervalMs',
  'object-sweep': 'intervalMs',
  'request-body': 'lingerMs',
  serving: 'drainNoticeMs listenersCloseMs lingerMs quietMs pollMs',
  supervisor: 'stableMs maxRestartDelayMs',
  appending: 'idleTimeoutSeconds heartbeatMs',
  completion: 'renewMs',
  // it answers Traefik only, inside of compose
  'docker-view': 'answerTimeoutMs maxHeaderSize',
  // of the doctor, which refuses nothing
  'database-checks': 'connectionTimeoutMillis',
  examination:
    'checkMs clockSkewMs connectMs lock_timeout replicaMs slowDatabaseMs slowRedisMs slowStoreMs statement_timeout',
  'outside-checks': 'requestMs',
  'redis-checks': 'connectMs',
  'store-checks': 'requestMs',
  // of the command that rotates secrets
  database: 'drainMs',
  fleet: 'pollMs requestMs',
  lock: 'idle_in_transaction_session_timeout',
  'live-secrets': 'retryMs',
  connections: 'drainMs pollMs',
  'secret-files': 'intervalMs',
  dns: 'timeout timeoutMs',
  'domain-checks': 'intervalMs',
  'direct-uploads': 'completionTimeoutSeconds',
  embedded: 'launchTimeoutMs recoveryTimeoutMs statement_timeout lock_timeout',
  'error-log': 'depth',
  'expected-error': 'stackTraceLimit',
  'folder-lock': 'exitTimeoutMs',
  // docs/events.md states them
  'event-stream': 'heartbeatMs',
  'event-streams': 'checkMs retryMs',
  events: 'announceMs intervalMs',
  health: 'freshForMs inspectedForMs timeoutMs',
  housekeeping: 'intervalMs',
  // docs/operations.md says how it records
  jobs: 'recordIntervalMs',
  'key-uses': 'intervalMs',
  'internal-listener': 'requestTimeout',
  // docs/providers.md states them, with their operations
  openid: 'rememberMs timeout',
  'host-lookups': 'hostLookupTimeoutMs otherFamilyMs timeout',
  'outbound-requests': 'outboundTimeoutMs',
  provider: 'providerTimeoutMs',
  providers: 'depth',
  mail: 'intervalMs smtpTimeoutMs',
  'index-builds': 'catalogueLockMs firstReportMs lockPauseMs lock_timeout nameLimit progressIntervalMs',
  migrate: 'lockWaitMs attemptPauseMs connectionTimeoutMillis',
  'owner-connection': 'statement_timeout lock_timeout idle_in_transaction_session_timeout connectionTimeoutMillis',
  'minimum-rate': 'awaitedMs',
  operator: 'statement_timeout lock_timeout',
  postmaster: 'fastShutdownMs immediateShutdownMs pollMs',
  'process-metrics': 'resolutionMs',
  'process-usage': 'tickMs',
  receiving: 'timeout_seconds heartbeatMs',
  schemas: 'maxPageLimit',
  signals: 'duplicateMs',
  'store-fence': 'freshForMs',
  'tenant-import': 'statement_timeout lock_timeout',
  'tenant-restore': 'statement_timeout lock_timeout',
  'error-reports': 'shutdownTimeoutMs timeoutMs',
  tracing: 'concurrencyLimit exportTimeoutMillis shutdownTimeoutMs',
  upkeep: 'freshForMs timeoutMs',
  'upload-slots': 'sampleIntervalMs',
  verification: 'workMs timeoutMs maxPauseMs workedMs',
  // docs/webhooks.md states those that a receiver sees
  'webhook-deliveries': 'drainMs intervalMs maxInFlight slowMs webhookTimeoutMs'
}

t.test('every limit in the sources has a row, or a reason to have none', (t) => {
  const number = /\b(\w*(?:[tT]imeout\w*|Ms|Interval|Limit|InFlight|HeaderSize|depth|_timeout))\s*[:=]\s*[\d_]+/g
  const found = ['src', 'plugins', 'routes', 'db']
    .flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' }).map((name) => `${folder}/${name}`)
    )
    .filter((path) => path.endsWith('.ts') && !path.startsWith('db/migrations/'))
    .flatMap((path) => [...readText(path).matchAll(number)].map(([, name]) => `${basename(path, '.ts')} ${name}`))
  const listed = [inTable, notLimits].flatMap((table) =>
    Object.entries(table).flatMap(([file, names]) => names.split(' ').map((name) => `${file} ${name}`))
  )
  t.strictSame([...new Set(found)].sort(), listed.sort())
  t.end()
})

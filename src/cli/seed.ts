import { randomBytes } from 'node:crypto'
import { closeSync, openSync, writeFileSync } from 'node:fs'
import { InvalidArgumentError } from 'commander'
import Fastify, { type FastifyInstance } from 'fastify'
import { sql } from 'kysely'
import { type EmbeddedServer, findEmbeddedUrl, startEmbedded } from '../../db/embedded.ts'
import { FolderInUse } from '../../db/folder-lock.ts'
import { systemScope } from '../../db/gate/gate-query.ts'
import { migrate } from '../../db/migrate.ts'
import passwords from '../../plugins/auth/passwords.ts'
import revocations from '../../plugins/auth/revocations.ts'
import tokens from '../../plugins/auth/tokens.ts'
import addresses from '../../plugins/http/addresses.ts'
import configPlugin from '../../plugins/infrastructure/config.ts'
import database from '../../plugins/infrastructure/database.ts'
import readMemory from '../../plugins/infrastructure/read-memory.ts'
import redis from '../../plugins/infrastructure/redis.ts'
import metrics from '../../plugins/observability/metrics.ts'
import tenants from '../../plugins/tenancy/tenants.ts'
import type { PasswordHash } from '../auth/passwords.ts'
import type { Config } from '../config/config.ts'
import { describe } from '../error-text.ts'
import { logging } from '../observability/log-format.ts'
import { onSignals } from '../signals.ts'
import { createCommand, readOptions } from './command.ts'
import { end, readSettings } from './operator.ts'
import { type Agency, inBatches, type Plan, planAgencies } from './seed-plan.ts'

/*
 * Fills a database with agencies and people for load tests. All people share one password, made for this run, and one
 * hash of it: a separate hash for each of 100,000 people would take an hour of CPU time.
 */

const maxPeople = 5000
const writers = 4

/*
 * Row security stays on: each person is inserted as that person, and each agency's rows inside that agency. So the
 * statement changes the gate's settings (`app.tenant_id`, `app.user_id`) from row to row. One statement does it all,
 * because a round trip for each row would take most of the time.
 */
const insertAgencies = `
do $$
declare
  agency jsonb;
  person jsonb;
  facts jsonb := current_setting('seed.facts');
begin
  for agency in select * from jsonb_array_elements(facts -> 'agencies') loop
    perform set_config('app.tenant_id', agency ->> 'id', true);
    insert into tenants (id, slug, name) values ((agency ->> 'id')::uuid, agency ->> 'slug', agency ->> 'name');
    for person in select * from jsonb_array_elements(agency -> 'people') loop
      perform set_config('app.user_id', person ->> 'id', true);
      insert into users (id, email, name, password_hash, pepper_id, email_verified_at)
        values ((person ->> 'id')::uuid, person ->> 'email', person ->> 'name', facts ->> 'password_hash', facts ->> 'pepper_id', now());
      insert into memberships (user_id, role) values ((person ->> 'id')::uuid, person ->> 'role');
      if person ->> 'session_id' is not null then
        insert into sessions (id, user_id, expires_at)
          values ((person ->> 'session_id')::uuid, (person ->> 'id')::uuid, (facts ->> 'expires_at')::timestamptz);
      end if;
    end loop;
  end loop;
end $$`

const log = (line: string) => void process.stderr.write(`${line}\n`)

function count(max: number) {
  return (text: string): number => {
    const number = /^[1-9]\d{0,6}$/.test(text) ? Number(text) : 0
    if (number === 0 || number > max) throw new InvalidArgumentError(`It must be a number from 1 to ${max}.`)
    return number
  }
}

function prefix(text: string): string {
  if (!/^[a-z][a-z0-9-]{0,30}$/.test(text)) throw new InvalidArgumentError('A host name can\u2019t begin with it.')
  return text
}

type Options = {
  tenants: number
  users: number
  sessions?: number
  tokens?: string
  name: string
  yesProduction: boolean
}

function readArguments() {
  const { tenants, users, sessions, tokens, name, yesProduction } = readOptions<Options>(
    createCommand('seed', "Makes agencies and people for load tests, and their tokens, with the server's own settings.")
      .option('--tenants <count>', 'agencies', count(1_000_000), 10)
      .option('--users <count>', 'people of each', count(maxPeople), 10)
      .option(
        '--sessions <count>',
        'how many people are signed in, spread over all agencies (default: all)',
        count(1_000_000)
      )
      .option('--tokens <file>', 'the file for the tokens of the people who are signed in')
      .option('--name <name>', 'agencies are <name>-1, <name>-2, …; a name is used once', prefix, 'load')
      .option('--yes-production', 'with NODE_ENV=production it refuses without this', false)
  )
  const people = tenants * users
  return {
    agencies: tenants,
    people: users,
    sessions: Math.min(sessions ?? people, people),
    file: tokens,
    name,
    allowsProduction: yesProduction
  }
}

/**
 * Finds the database: DATABASE_URL, the embedded server of a running process, or an embedded server for the time of
 * this run.
 */
async function findDatabase(config: Config): Promise<{ url: string; embedded?: EmbeddedServer }> {
  if (config.databaseUrl) return { url: config.databaseUrl }
  try {
    const embedded = await startEmbedded(config.dataDir, { progress: log })
    await migrate(embedded.url('aggios_owner'))
    return { url: embedded.url('aggios_app'), embedded }
  } catch (err) {
    const url = err instanceof FolderInUse && findEmbeddedUrl(config.dataDir)
    if (url) return { url }
    throw err
  }
}

/** Loads the plugins of the server that sign, hash and query, without those that work in the background. */
async function openProduct(config: Config): Promise<FastifyInstance> {
  const app = Fastify(logging({ ...config, logLevel: 'warn' }))
  app.register(configPlugin, { config })
  app.register(addresses)
  app.register(metrics)
  app.register(redis)
  app.register(readMemory)
  app.register(database)
  app.register(revocations)
  app.register(tenants)
  app.register(tokens)
  app.register(passwords)
  await app.ready()
  return app
}

async function insertBatch(app: FastifyInstance, agencies: Agency[], hash: PasswordHash): Promise<void> {
  const expires_at = new Date(Date.now() + app.config.sessionMaxAge * 1000)
  const facts = JSON.stringify({ ...hash, expires_at, agencies })
  await app.gate.transaction(systemScope, async (trx) => {
    await sql`select set_config('seed.facts', ${facts}, true)`.execute(trx)
    await sql.raw(insertAgencies).execute(trx)
  })
}

type TokenFile = { add(app: FastifyInstance, agency: Agency): void; close(): void }

/**
 * Writes the tokens as JSON with one line per person, so that a load generator without a JSON parser can read them too.
 */
function createTokenFile(path: string, password: string): TokenFile {
  // readable by the owner only: a reader of the file can act as these people
  const file = openSync(path, 'w', 0o600)
  let separator = ''
  writeFileSync(file, `{"password":${JSON.stringify(password)},"users":[\n`)
  return {
    add(app, { id: tenant_id, slug, people }) {
      const host = `${slug}.${app.config.baseDomain}`
      const lines = people.flatMap(({ id: user_id, email, role, session_id: sid }) => {
        if (sid === null) return []
        const { access_token, refresh_token } = app.tokens.issue(
          { user_id, email, tenant_id, role, sid, key_thumbprint: null },
          0
        )
        return JSON.stringify({ host, tenant_id, user_id, email, access_token, refresh_token })
      })
      if (lines.length === 0) return
      writeFileSync(file, separator + lines.join(',\n'))
      separator = ',\n'
    },
    close() {
      writeFileSync(file, '\n]}\n')
      closeSync(file)
    }
  }
}

function createProgress(total: number): (made: number) => void {
  const startedAt = Date.now()
  let loggedAt = startedAt
  return (made) => {
    if (made < total && Date.now() - loggedAt < 1000) return
    loggedAt = Date.now()
    log(`${made} of ${total} people after ${((loggedAt - startedAt) / 1000).toFixed(1)} s`)
  }
}

/** The first SIGINT or SIGTERM ends the seeding after the running batches. A later signal exits the process. */
function endOnSignal(): AbortSignal {
  const ended = new AbortController()
  onSignals(
    () => ended.abort(),
    () => process.exit(130)
  )
  return ended.signal
}

/** Inserts the planned agencies. Resolves to the number of people inserted, which is smaller after a signal. */
async function seed(app: FastifyInstance, plan: Plan, password: string, file?: TokenFile): Promise<number> {
  const ended = endOnSignal()
  const hash = await app.passwords.hash(password)
  const progress = createProgress(plan.agencies * plan.people)
  const batches = inBatches(planAgencies(plan))
  let made = 0
  // the writers share one iterator: each takes the next batch when it is free
  const write = async () => {
    for (const batch of batches) {
      await insertBatch(app, batch, hash)
      for (const agency of batch) file?.add(app, agency)
      made += batch.reduce((sum, { people }) => sum + people.length, 0)
      progress(made)
      if (ended.aborted) break
    }
  }
  const results = await Promise.allSettled(Array.from({ length: writers }, write))
  const failed = results.find((result) => result.status === 'rejected')
  if (failed && !ended.aborted) throw failed.reason
  return made
}

async function fill(app: FastifyInstance): Promise<void> {
  if (await app.tenants.find(`${plan.name}-1`)) {
    throw new Error(`there are agencies called ${plan.name}-… already; choose another --name`)
  }
  const password = randomBytes(12).toString('base64url')
  const tokenFile = file === undefined ? undefined : createTokenFile(file, password)
  // closed after an early end too, so that the file is valid JSON
  const made = await seed(app, plan, password, tokenFile).finally(() => tokenFile?.close())
  log(`everybody's password is ${password}: one hash, shared by all`)
  if (made < plan.agencies * plan.people) {
    throw new Error(`ended early: ${made} people are there and stay; the next seeding wants another --name`)
  }
}

const { file, allowsProduction, ...plan } = readArguments()
const config = readSettings()
if (config.nodeEnv === 'production' && !allowsProduction) {
  end(78, 'this is production: --yes-production fills it with people who all have one password')
}
let embedded: EmbeddedServer | undefined
let app: FastifyInstance | undefined
try {
  const database = await findDatabase(config)
  embedded = database.embedded
  app = await openProduct({ ...config, databaseUrl: database.url, databasePool: writers })
  await fill(app)
} catch (err) {
  log(describe(err))
  process.exitCode = 1
} finally {
  await app?.close()
  await embedded?.stop()
}

import { createHash } from 'node:crypto'
import { Kysely } from 'kysely'
import pg from 'pg'
import { connectionTo } from '../../../db/gate/connection-settings.ts'
import { createTenantGate, type TenantGate } from '../../../db/gate/gate.ts'
import { gateStatement, systemScope } from '../../../db/gate/gate-query.ts'
import { PoolDialect } from '../../../db/gate/pool-dialect.ts'
import type { TenantTables } from '../../../db/gate/tables.ts'
import { archiveLateSeconds } from '../../../db/queries/operations/archive.ts'
import type { Config } from '../../config/config.ts'
import type { Environment } from '../../config/environment.ts'
import { describe } from '../../error-text.ts'
import { openStore } from '../../files/store/configured-store.ts'
import type { ObjectStore } from '../../files/store/object-store.ts'
import { kinds } from './findings.ts'
import type { Kind } from './kinds.ts'
import { type Hole, knownHoles } from './known-holes.ts'

export type Finding = Kind & { code: string; seen: string }
export type NotChecked = { check: string; reason: string }
/** What was learned about a service, whether something is wrong with it or not. */
export type Facts = Record<string, Record<string, string | number>>

/** A look at one thing. It reports what is wrong, and never changes anything. */
export type Check = {
  name: string
  /** False for checks of what only works once this server does, or of services that a start must not wait for. */
  atStart?: false
  run(examination: Examination): Promise<void> | void
}

/** Bounds beyond which something is worth a finding. */
export const limits = {
  checkMs: 10_000,
  slowDatabaseMs: 50,
  slowRedisMs: 50,
  slowStoreMs: 500,
  clockSkewMs: 5000,
  diskFullShare: 0.02,
  diskNearlyFullShare: 0.1,
  descriptors: 4096,
  deadRows: 50_000,
  transactionIds: 1_000_000_000,
  heldTransactions: 1_000_000,
  openTransactionSeconds: 60,
  archiveSeconds: 86_400,
  archiveLateSeconds,
  copySeconds: 3600,
  mailSeconds: 900,
  sealSeconds: 900,
  jobSeconds: 900,
  replicaMs: 3000,
  certificateDays: 14,
  secretBytes: 16
}
export type Limits = typeof limits

export type Options = {
  config: Config
  env: Environment
  /** The database as `aggios_app`. Undefined when there is none. */
  databaseUrl: string | undefined
  limits?: Partial<Limits>
  holes?: readonly Hole[]
  now?: () => number
  /** Where `.env` and compose.yaml are. */
  folder?: string
}

/** Thrown by a check, or by what it calls, when it can't look. The message is the reason. */
export class CannotLook extends Error {}

const timeouts = { statement_timeout: 4000, lock_timeout: 1000 }
const connectMs = 8000

export type Examination = ReturnType<typeof startExamination>

/** Opens what checks share: one connection to the database, the store, and the report that they write. */
export function startExamination(options: Options) {
  const { config, databaseUrl } = options
  const findings: Finding[] = []
  const notChecked: NotChecked[] = []
  const facts: Facts = {}
  const database = databaseUrl === undefined ? undefined : openDatabase(databaseUrl)
  let store: Promise<ObjectStore> | undefined

  return {
    config,
    env: options.env,
    databaseUrl,
    folder: options.folder ?? process.cwd(),
    limits: { ...limits, ...options.limits },
    holes: options.holes ?? knownHoles,
    now: options.now ?? Date.now,
    findings,
    notChecked,
    facts,
    /** Reports a finding: its code, and what was seen. `seen` must never contain a secret. */
    found(code: string, seen: string): void {
      findings.push({ code, seen, ...(kinds.get(code) as Kind) })
    },
    /** Reports what could not be looked at. */
    skipped(check: string, reason: string): void {
      notChecked.push({ check, reason })
    },
    learned(service: string, fact: Record<string, string | number>): void {
      facts[service] = { ...facts[service], ...fact }
    },
    database: () => {
      if (!database) throw new CannotLook('there is no database')
      return database
    },
    store: () => {
      store ??= openStore(config)
      return store
    },
    async close(): Promise<void> {
      await database?.close()
      await store?.then((opened) => opened.close()).catch(() => {})
    }
  }
}

export type Database = ReturnType<typeof openDatabase>

/**
 * Opens one connection for reading. Each statement runs in a read-only transaction that sets everything it depends on,
 * so that it works through a pooler too. After a failed connection every statement is refused at once.
 */
export function openDatabase(url: string) {
  const pool = new pg.Pool({
    ...connectionTo(url, undefined),
    max: 1,
    connectionTimeoutMillis: connectMs,
    query_timeout: timeouts.statement_timeout + 500,
    application_name: 'aggios-doctor'
  })
  pool.on('error', () => {})
  const db = new Kysely<TenantTables>({ dialect: new PoolDialect({ pool }) })
  const gate: TenantGate = createTenantGate(db, pool, undefined, { all: timeouts, keyed: timeouts })
  let unreachable: Error | undefined

  async function connect(): Promise<pg.PoolClient> {
    if (unreachable) throw new CannotLook('the database cannot be reached')
    try {
      return await pool.connect()
    } catch (err) {
      unreachable = err as Error
      throw err
    }
  }

  return {
    /** Opens a connection. Rejects with the error of PostgreSQL or of the network. */
    async connect(): Promise<void> {
      const client = await connect()
      client.release()
    },
    /** Runs a statement that reads. Resolves to its rows. */
    async ask<Row extends object>(text: string, values: unknown[] = []): Promise<Row[]> {
      const client = await connect()
      let broken = true
      try {
        await client.query('begin transaction read only')
        await client.query(gateStatement(systemScope, timeouts))
        const { rows } = await client.query<Row>(text, values)
        await client.query('rollback')
        broken = false
        return rows
      } finally {
        client.release(broken)
      }
    },
    /** For statements of db/queries that read. */
    gate: (): TenantGate => {
      if (unreachable) throw new CannotLook('the database cannot be reached')
      return gate
    },
    close: () => pool.end()
  }
}

/** The first row of a statement that always has one. */
export async function askOne<Row extends object>({ database }: Examination, text: string): Promise<Row> {
  const [row] = await database().ask<Row>(text)
  if (!row) throw new CannotLook('the database gave no answer')
  return row
}

/** The error of a failed call in one line, without stacks. */
export const reasonOf = (err: unknown) => describe(err).split('\n', 1)[0] as string

/** Runs `work` a few times, and resolves to the median of the milliseconds that it took. */
export async function medianMs(work: () => Promise<unknown>, times = 5): Promise<number> {
  const taken: number[] = []
  for (let i = 0; i < times; i++) {
    const startedAt = performance.now()
    await work()
    taken.push(performance.now() - startedAt)
  }
  return Math.round((taken.sort((a, b) => a - b)[Math.floor(times / 2)] as number) * 10) / 10
}

/** Rejects when the work takes longer. The work itself goes on, so it must end by itself. */
export async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new CannotLook(`there was no answer within ${ms / 1000} s`)), ms)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

/** A text by which two secrets can be compared. */
export const fingerprint = (secret: string) => createHash('sha256').update(secret).digest('hex')

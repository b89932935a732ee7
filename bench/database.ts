import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pg from 'pg'
import { type EmbeddedServer, readRoles, startEmbedded } from '../db/embedded.ts'
import { migrate } from '../db/migrate.ts'
import { developmentSecret } from '../src/config/development-secrets.ts'
import { adopt } from './children.ts'
import { root } from './servers.ts'

/*
 * Runs one durable PostgreSQL 16, with a database for each dataset. Databases are kept for the next run.
 */

/** A person in the file that `npm run seed` writes. */
export type SeededUser = {
  host: string
  tenant_id: string
  user_id: string
  email: string
  access_token: string
  refresh_token: string
}

export type Urls = { app: string; owner: string; postgres: string }

/** A seeded database, and the people with a session in it. */
export type Dataset = { urls: Urls; password: string; users: SeededUser[] }

export type Size = { name: string; tenants: number; people: number; sessions: number }

export type Database = {
  /** The postmaster, whose children are the connections. */
  pid: number
  version: string
  /** The secrets of the product, for signing and hashing. */
  secrets: { JWT_SECRET: string; PASSWORD_PEPPER: string }
  dataset(size: Size): Promise<Dataset>
  /** Copies a dataset to another database, which a scenario may change. */
  copy(of: Dataset, size: Size, name: string): Promise<Dataset>
  /** Copies a dataset to another database, and switches row security off there as the owner of the tables. */
  withoutRowSecurity(of: Dataset, size: Size): Promise<Dataset>
  drop(of: Dataset): Promise<void>
  stop(): Promise<void>
}

export const baseDomain = 'bench.example'
const folder = join(import.meta.dirname, '.data')
/** A dataset is rebuilt after this time: its access tokens are valid for a day. */
const freshForMs = 12 * 3_600_000

export async function openDatabase(say: (line: string) => void): Promise<Database> {
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const secrets = {
    JWT_SECRET: developmentSecret(folder, 'jwt_secret'),
    PASSWORD_PEPPER: developmentSecret(folder, 'password_pepper')
  }
  const server = await startEmbedded(folder)
  const admin = server.url('postgres', 'postgres')
  const [shown] = await query<{ server_version: string }>(admin, 'show server_version')

  async function copy(of: Dataset, size: Size, name: string): Promise<Dataset> {
    const urls = urlsOf(server, name)
    await createDatabase(admin, urls, name, size.name)
    return { ...of, urls }
  }

  return {
    pid: Number(readFileSync(join(folder, 'postgres', 'postmaster.pid'), 'utf8').split('\n', 1)[0]),
    version: shown?.server_version ?? '',
    secrets,
    async dataset(size) {
      const urls = urlsOf(server, size.name)
      const tokens = join(folder, `${size.name}.json`)
      if (!(await isFresh(admin, size.name, tokens))) {
        say(`building ${size.name}: ${size.tenants} agencies, ${size.tenants * size.people} people`)
        rmSync(tokens, { force: true })
        await createDatabase(admin, urls, size.name, 'template1')
        await migrate(urls.owner)
        // renamed when complete, so that a dataset of an aborted run is built again
        const unfinished = `${tokens}.unfinished`
        await seed(urls, secrets, size, unfinished)
        await query(urls.postgres, 'vacuum analyze')
        await query(urls.postgres, 'checkpoint')
        renameSync(unfinished, tokens)
      }
      return { urls, ...JSON.parse(readFileSync(tokens, 'utf8')) }
    },
    copy,
    async withoutRowSecurity(of, size) {
      const open = await copy(of, size, `${size.name}_open`)
      await query(open.urls.owner, openTables)
      await query(open.urls.postgres, 'vacuum analyze')
      await query(open.urls.postgres, 'checkpoint')
      return open
    },
    async drop({ urls }) {
      await query(admin, `drop database ${new URL(urls.app).pathname.slice(1)} with (force)`)
    },
    stop: () => server.stop()
  }
}

const openTables = `
do $$
declare
  name text;
begin
  for name in select c.relname from pg_class c where c.relrowsecurity and c.relnamespace = 'public'::regnamespace loop
    execute format('alter table %I no force row level security, disable row level security', name);
  end loop;
end $$`

function urlsOf(server: EmbeddedServer, name: string): Urls {
  return {
    app: server.url('aggios_app', name),
    owner: server.url('aggios_owner', name),
    postgres: server.url('postgres', name)
  }
}

/** Tells whether a database has all current migrations, and tokens that stay valid for the run. */
async function isFresh(admin: string, name: string, tokens: string): Promise<boolean> {
  if (!existsSync(tokens) || Date.now() - statSync(tokens).mtimeMs > freshForMs) return false
  const [found] = await query(admin, 'select from pg_database where datname = $1', [name])
  if (!found) return false
  const applied = await query<{ name: string }>(
    admin.replace(/\/postgres$/, `/${name}`),
    'select name from kysely_migration order by name'
  )
  const wanted = readdirSync(join(root, 'db', 'migrations')).map((file) => file.replace(/\.ts$/, ''))
  return JSON.stringify(applied.map((row) => row.name)) === JSON.stringify(wanted.sort())
}

async function createDatabase(admin: string, urls: Urls, name: string, template: string): Promise<void> {
  await query(admin, `drop database if exists ${name} with (force)`)
  await query(admin, `create database ${name} template ${template}`)
  await query(urls.postgres, readRoles())
}

async function seed(urls: Urls, secrets: Database['secrets'], size: Size, tokens: string): Promise<void> {
  const counts = ['--tenants', size.tenants, '--users', size.people, '--sessions', size.sessions].map(String)
  const child = adopt(
    spawn(process.execPath, [join(root, 'src', 'cli', 'seed.ts'), ...counts, '--tokens', tokens], {
      // not in the root, which may have a developer's `.env`
      cwd: tmpdir(),
      env: { ...process.env, ...secrets, DATABASE_URL: urls.app, BASE_DOMAIN: baseDomain },
      stdio: ['ignore', 'ignore', 'inherit']
    })
  )
  const [code] = await once(child, 'exit')
  if (code !== 0) throw new Error(`the seeding of ${size.name} failed`)
}

/** Runs one statement on a new connection. */
export async function query<Row extends pg.QueryResultRow>(
  url: string,
  text: string,
  values?: unknown[]
): Promise<Row[]> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    return (await client.query<Row>(text, values)).rows
  } finally {
    await client.end()
  }
}

import pg from 'pg'
import { readRoles } from '../db/embedded.ts'

export const templateDatabase = 'aggios_template'

export type DatabaseUrls = {
  postgres: string
  owner: string
  app: string
  backup: string
  /** What the product connects to: the same as `app`, through PgBouncer if the run has one (TEST_PGBOUNCER=1). */
  serving: string
}

/** The connection strings of one database, one for each role. */
export function databaseUrls(name: string): DatabaseUrls {
  const text = process.env.TEST_POSTGRES
  if (!text) throw new Error('run the tests with npm test: they need its PostgreSQL')
  const urls = JSON.parse(text) as DatabaseUrls
  return {
    postgres: urls.postgres.replace('DATABASE', name),
    owner: urls.owner.replace('DATABASE', name),
    app: urls.app.replace('DATABASE', name),
    backup: urls.backup.replace('DATABASE', name),
    serving: urls.serving.replace('DATABASE', name)
  }
}

/** Creates a database as a copy of another, with the rights of db/roles.sql. */
export async function createDatabase(name: string, template: string): Promise<DatabaseUrls> {
  const roles = readRoles()
  // to copy the files takes less than to log each page, where nothing is flushed to the disk
  await withClient(databaseUrls('postgres').postgres, (admin) =>
    admin.query(`create database ${name} template ${template} strategy file_copy`)
  )
  // roles belong to the whole server, and test files that run at once change them at once: PostgreSQL refuses one of
  // two
  await withClient(databaseUrls(name).postgres, (admin) => retry(() => admin.query(roles)))
  return databaseUrls(name)
}

export async function dropDatabase(name: string): Promise<void> {
  await withClient(databaseUrls('postgres').postgres, (admin) => admin.query(`drop database ${name} with (force)`))
}

/** Opens a connection, runs `work` with it, and closes it. */
export async function withClient<T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    return await work(client)
  } finally {
    await client.end()
  }
}

async function retry<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await work()
    } catch (err) {
      // "tuple concurrently updated"
      if (attempt === 20 || (err as { code?: string }).code !== 'XX000') throw err
    }
  }
}

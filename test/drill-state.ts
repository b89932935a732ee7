import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import { allObjects } from '../src/files/object-backup.ts'
import { isOurKey } from '../src/files/store/keys.ts'
import type { ObjectStore } from '../src/files/store/object-store.ts'
import { withClient } from './databases.ts'

/*
 * What a drill compares: all rows of all tables, and all objects with their bytes.
 */

export type State = {
  /** For each table: the number of its rows, and a digest of them that does not depend on their order. */
  tables: Record<string, { rows: number; digest: string }>
  /** For each object: the digest of its bytes. */
  objects: Record<string, string>
}

/** Reads every row, on a connection of the superuser. */
export async function readTables(client: pg.ClientBase): Promise<State['tables']> {
  const { rows: names } = await client.query<{ name: string }>(
    "select relname as name from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1"
  )
  const tables: State['tables'] = {}
  for (const { name } of names) {
    const { rows } = await client.query<{ rows: number; digest: string }>(
      `select count(*)::float8 as rows, coalesce(sum(hashtextextended(r::text, 0)::numeric), 0)::text as digest from "${name}" r`
    )
    tables[name] = rows[0] as { rows: number; digest: string }
  }
  return tables
}

/** Reads every object that the product has made. */
export async function readObjects(store: ObjectStore): Promise<State['objects']> {
  const objects: State['objects'] = {}
  for await (const { key } of allObjects(store)) {
    if (!isOurKey(key)) continue
    const content = await store.get(key)
    if (!content) continue
    const hash = createHash('sha256')
    for await (const chunk of content as AsyncIterable<Buffer>) hash.update(chunk)
    objects[key] = hash.digest('hex')
  }
  return objects
}

/**
 * Reads the state of a moment, and the moment by the clock of the database. No row is written between what is read and
 * the moment, so a restore to it must bring exactly these rows back. While somebody writes it tries again.
 *
 * Nobody may add or remove objects meanwhile.
 */
export function readState(url: string, store: ObjectStore): Promise<State & { at: Date }> {
  return withClient(url, async (client) => {
    for (let attempt = 0; attempt < 50; attempt++) {
      const before = await readNextTransaction(client)
      const tables = await readTables(client)
      // dates have milliseconds, and commits have microseconds
      const { rows } = await client.query<{ at: Date }>(
        "select date_trunc('milliseconds', clock_timestamp()) + interval '1 millisecond' as at"
      )
      await sleep(10)
      if ((await readNextTransaction(client)) === before) {
        return { tables, objects: await readObjects(store), at: rows[0]?.at as Date }
      }
      await sleep(100)
    }
    throw new Error('the database was never quiet')
  })
}

/** The next transaction id. While it is the same, no transaction has written anything, and none is in progress. */
async function readNextTransaction(client: pg.ClientBase): Promise<string> {
  const { rows } = await client.query<{ next: string; oldest: string }>(
    'select pg_snapshot_xmax(s)::text as next, pg_snapshot_xmin(s)::text as oldest from pg_current_snapshot() s'
  )
  const { next, oldest } = rows[0] as { next: string; oldest: string }
  return next === oldest ? next : `${oldest} to ${next}`
}

/** Names each table and each object that is not the same. Nothing, when both states are equal. */
export function differences(before: State, after: State): string[] {
  const names = (one: object, other: object) => new Set([...Object.keys(one), ...Object.keys(other)])
  const found: string[] = []
  for (const name of names(before.tables, after.tables)) {
    const [was, is] = [before.tables[name], after.tables[name]]
    if (was?.digest === is?.digest && was?.rows === is?.rows) continue
    found.push(`table ${name} had ${was?.rows ?? 'no'} rows and has ${is?.rows ?? 'no'}, or others`)
  }
  for (const key of names(before.objects, after.objects)) {
    if (before.objects[key] === after.objects[key]) continue
    found.push(
      `object ${key} ${after.objects[key] === undefined ? 'is missing' : before.objects[key] ? 'has other bytes' : 'is new'}`
    )
  }
  return found
}

import {
  type CompiledQuery,
  DummyDriver,
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type QueryExecutorProvider
} from 'kysely'
import type { TenantTables } from './tables.ts'

/**
 * A query that is compiled once, when its module loads. `order` names the value for `$1`, `$2`, …
 *
 * Keyed reads use the pipelined connections. A statement that `writes`, or may be `slow` (a list that reads more rows than
 * it returns), takes a connection of the pool, so that no other statement waits behind it.
 *
 * A statement with `replica` may run on a replica and so miss the last seconds. Don't set it where a client looks for its
 * own change, or where a decision depends on the result.
 *
 * The rows of a `remembered` statement may be answered from the memory of the process (`memory.ts`).
 */
export type Statement<Values, Row> = {
  readonly name: string
  readonly text: string
  readonly order: readonly (keyof Values & string)[]
  readonly writes: boolean
  readonly slow: boolean
  readonly replica: boolean
  readonly remembered?: Remembered<Row>
  /** Holds the row's type for the compiler; never set at run time. */
  readonly row?: Row
}

export type RememberedStatement<Values, Row> = Statement<Values, Row> & { readonly remembered: Remembered<Row> }

/**
 * `reads`: the tables whose rows the statement shows or looks for. Triggers on them tell every process of a change
 * (db/catalogue/change-checks.ts). `tag`: the ETag of the reply. A request with another tag is answered by the database.
 */
export type Remembered<Row> = { readonly reads: readonly RememberedTable[]; tag(row: Row): string }
export type RememberedTable = 'memberships' | 'storage_usage' | 'tenants' | 'users'

class Placeholder {
  readonly key: string
  constructor(key: string) {
    this.key = key
  }
}

const placeholders = new Proxy({}, { get: (_, key) => new Placeholder(String(key)) })

const compiler = new Kysely<TenantTables>({
  dialect: {
    createAdapter: () => new PostgresAdapter(),
    createDriver: () => new DummyDriver(),
    createIntrospector: (db) => new PostgresIntrospector(db),
    createQueryCompiler: () => new PostgresQueryCompiler()
  }
})

const names = new Set<string>()

type Options = { writes?: boolean; slow?: boolean; replica?: boolean }
type Compilable<Row> = { compile(provider: QueryExecutorProvider): CompiledQuery<Row> }

/**
 * Compiles a query of the hot path. Kysely's compilation costs more than the query itself, so it happens once; PostgreSQL
 * keeps the plan under `name` on each connection.
 *
 * Write `$.value` where a value of the call belongs; nothing else may vary between calls. Throws when the name is taken, and
 * when a statement is to be remembered that writes, or that a replica may answer.
 *
 * @example
 * export const readTenant = statement('read_tenant', (db, $: { tenant_id: string }) =>
 *   db.selectFrom('tenants').select(['id', 'name']).where('id', '=', $.tenant_id))
 */
export function statement<Values extends object, Row>(
  name: string,
  build: (db: Kysely<TenantTables>, $: Values) => Compilable<Row>,
  options: Options & { remembered: Remembered<NoInfer<Row>> }
): RememberedStatement<Values, Row>
export function statement<Values extends object, Row>(
  name: string,
  build: (db: Kysely<TenantTables>, $: Values) => Compilable<Row>,
  options?: Options
): Statement<Values, Row>
export function statement<Values extends object, Row>(
  name: string,
  build: (db: Kysely<TenantTables>, $: Values) => Compilable<Row>,
  { writes = false, slow = false, replica = false, remembered }: Options & { remembered?: Remembered<Row> } = {}
): Statement<Values, Row> {
  if (remembered && (writes || replica)) throw new TypeError(`${name} can't be remembered`)
  // a prepared statement is found by its name alone: with two of one name, one call would run the other's text
  if (names.has(name)) throw new TypeError(`there are two statements called ${name}`)
  names.add(name)
  const compiled = build(compiler, placeholders as Values).compile(compiler)
  const order = compiled.parameters.map((parameter) => {
    if (!(parameter instanceof Placeholder)) throw new TypeError(`${name} has a value that is not a placeholder`)
    return parameter.key as keyof Values & string
  })
  return { name, text: compiled.sql, order, writes, slow, replica, ...(remembered && { remembered }) }
}

export function isRemembered<Values, Row>(
  statement: Statement<Values, Row>
): statement is RememberedStatement<Values, Row> {
  return statement.remembered !== undefined
}

/** The values of a call in the order of `$1`, `$2`, … */
export function valuesOf<Values extends object, Row>({ order }: Statement<Values, Row>, values: Values): unknown[] {
  return order.map((key) => values[key])
}

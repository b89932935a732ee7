import {
  type CompiledQuery,
  DummyDriver,
  Kysely,
  PostgresAdapter,
  PostgresIntrospector,
  PostgresQueryCompiler,
  type QueryExecutorProvider
} from 'kysely'
import type { TenantTables } from '../tables.ts'

/**
 * A query compiled once, when its module loads. `order` says which of the call's values stands at `$1`, `$2`, …
 *
 * Keyed reads go down the pipelined connections. What `writes`, and what may be `slow` (lists that look at more rows than they
 * show), takes a connection of its own, so that it stands in front of nobody. What may be answered by a `replica` can miss the
 * last seconds: never what somebody has just changed and looks for, and never what decides.
 */
export type Statement<Values, Row> = {
  readonly name: string
  readonly text: string
  readonly order: readonly (keyof Values & string)[]
  readonly writes: boolean
  readonly slow: boolean
  readonly replica: boolean
  /** Carries the row's type; there is nothing at run time. */
  readonly row?: Row
}

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

type Compilable<Row> = { compile(provider: QueryExecutorProvider): CompiledQuery<Row> }

/**
 * Compiles a query of the hot path. Kysely's compile costs more than the query itself, so it happens once, and PostgreSQL
 * keeps the plan under `name` on each connection.
 *
 * Write `$.value` where a value of the call goes; nothing else may vary from call to call.
 *
 * @example
 * export const readTenant = statement('read_tenant', (db, $: { tenant_id: string }) =>
 *   db.selectFrom('tenants').select(['id', 'name']).where('id', '=', $.tenant_id))
 */
export function statement<Values extends object, Row>(
  name: string,
  build: (db: Kysely<TenantTables>, $: Values) => Compilable<Row>,
  { writes = false, slow = false, replica = false } = {}
): Statement<Values, Row> {
  // on a connection two statements under one name are one that is wrong
  if (names.has(name)) throw new TypeError(`there are two statements called ${name}`)
  names.add(name)
  const compiled = build(compiler, placeholders as Values).compile(compiler)
  const order = compiled.parameters.map((parameter) => {
    if (!(parameter instanceof Placeholder)) throw new TypeError(`${name} has a value that is not a placeholder`)
    return parameter.key as keyof Values & string
  })
  return { name, text: compiled.sql, order, writes, slow, replica }
}

/** A call's values in the order of `$1`, `$2`, … */
export function valuesOf<Values extends object, Row>({ order }: Statement<Values, Row>, values: Values): unknown[] {
  return order.map((key) => values[key])
}

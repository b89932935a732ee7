import type { Kysely } from 'kysely'
import { catalogueChecks } from '../../../db/catalogue/checks.ts'
import { systemScope } from '../../../db/gate/gate-query.ts'
import { UnsafeRole } from '../../../db/gate/role-check.ts'
import type { SharedTables } from '../../../db/gate/tables.ts'
import { checkSchema, findUnknownSteps, ProgramTooOld, readIndexes } from '../../../db/migrate.ts'
import { readUpkeep, type Upkeep } from '../../../db/queries/operations/upkeep.ts'
import { refuseUnsafe } from './database-checks.ts'
import { askOne, CannotLook, type Check, type Examination, reasonOf } from './examination.ts'

/*
 * The schema, and who may do what with it. All of it is in PostgreSQL's catalogue, which every role may read.
 */

export const schemaChecks: readonly Check[] = [
  { name: 'role of the server', run: checkRole },
  { name: 'schema', run: checkSteps },
  { name: 'indexes', run: checkIndexes },
  ...catalogueChecks.map(({ code, text }) => ({
    name: code,
    async run(exam: Examination) {
      await refuseUnknownSchema(exam)
      const rows = await exam.database().ask<{ name: string }>(text)
      if (rows.length > 0) exam.found(code, list(rows.map(({ name }) => name)))
    }
  })),
  { name: 'who may connect', run: checkConnect },
  { name: 'months of the audit log', run: checkMonths }
]

const list = (names: string[]) =>
  names.length > 10 ? `${names.slice(0, 10).join(', ')} and ${names.length - 10} more` : names.join(', ')

async function checkRole(exam: Examination): Promise<void> {
  await exam.database().connect()
  try {
    await refuseUnsafe(exam.databaseUrl as string, 'DATABASE_URL')
  } catch (err) {
    if (!(err instanceof UnsafeRole)) throw err
    exam.found('role_unsafe', reasonOf(err))
  }
}

const inGate = (exam: Examination, work: (db: Kysely<SharedTables>) => Promise<unknown>) =>
  exam
    .database()
    .gate()
    .transaction(systemScope, (trx) => work(trx as unknown as Kysely<SharedTables>))

async function checkSteps(exam: Examination): Promise<void> {
  await inGate(exam, checkSchema).catch((err) => {
    if (err instanceof ProgramTooOld) return exam.found('schema_too_new', reasonOf(err))
    if (!/^the schema lacks/.test(reasonOf(err))) throw err
    exam.found('schema_outdated', reasonOf(err))
  })
}

/** Indexes are built after the steps, which a server does not wait for. */
async function checkIndexes(exam: Examination): Promise<void> {
  await refuseUnknownSchema(exam)
  const { wanted } = await readIndexes()
  const rows = await exam.database().ask<{ name: string; valid: boolean }>(
    `select c.relname as name, i.indisvalid as valid from pg_index i join pg_class c on c.oid = i.indexrelid
     where c.relnamespace = 'public'::regnamespace`
  )
  const missing = wanted.filter((index) => !rows.some(({ name }) => name === index.name)).map(({ name }) => name)
  const unfinished = rows.filter(({ valid }) => !valid).map(({ name }) => `${name} (unfinished)`)
  if (missing.length + unfinished.length > 0) exam.found('indexes_unbuilt', list([...missing, ...unfinished]))
}

const unknownSteps = new WeakMap<Examination, Promise<string[]>>()

/** The lists of what was reviewed belong to the steps that this version knows. */
async function refuseUnknownSchema(exam: Examination): Promise<void> {
  const asked = unknownSteps.get(exam) ?? (inGate(exam, findUnknownSteps) as Promise<string[]>)
  unknownSteps.set(exam, asked)
  const unknown = await asked
  if (unknown.length > 0) throw new CannotLook(`the schema has steps of another version: ${unknown.join(', ')}`)
}

async function checkConnect(exam: Examination): Promise<void> {
  const { everybody, directory } = await askOne<{ everybody: boolean; directory: boolean }>(
    exam,
    `select exists (select from pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) g
        where datname = current_database() and g.grantee = 0 and g.privilege_type = 'CONNECT') as everybody,
      exists (select from pg_roles r where r.rolcanlogin and not r.rolsuper
        and (r.rolname = 'aggios_directory' or pg_has_role(r.oid, 'aggios_directory', 'usage'))) as directory`
  )
  if (everybody) exam.found('everybody_may_connect', 'PUBLIC has CONNECT on the database')
  if (directory) exam.found('directory_may_sign_in', 'a role that can sign in has the rights of aggios_directory')
}

async function checkMonths(exam: Examination): Promise<void> {
  const { months_ahead, months_missing } = await askOne<Upkeep>(exam, readUpkeep.text)
  if (months_ahead < 1) exam.found('audit_months_missing', months_missing.join(', '))
}

import { changeChecks } from './change-checks.ts'
import { privilegeChecks } from './privilege-checks.ts'
import {
  appMay,
  type CatalogueCheck,
  canonicalPredicate,
  definerFunctions,
  hasTenant,
  isTable,
  list,
  meetsApp,
  oneLine,
  ours,
  quote,
  reviewedPolicies,
  tablesWithoutTenant,
  triggerFunctions
} from './reviewed.ts'

/*
 * Checks of every object in the database, as queries of PostgreSQL's own catalogue, which every role may read. A check
 * returns the objects that are wrong: on a sound schema, none. The tests plant the defects that each must find.
 */

export const catalogueChecks: readonly CatalogueCheck[] = [
  {
    id: 'C1',
    code: 'row_security_off',
    title: 'every table of ours has row security, and its owner obeys it too',
    text: `select c.relname as name from pg_class c
      where ${isTable} and c.relname not like 'kysely\\_migration%' and not (c.relrowsecurity and c.relforcerowsecurity)`
  },
  {
    id: 'C2',
    code: 'table_without_tenant',
    title: 'every table names its tenant in each row, or is on the list of those that belong to none',
    text: `select c.relname as name from pg_class c
      where ${isTable} and not (c.relname = any (${list(tablesWithoutTenant)}) and c.relnamespace = 'public'::regnamespace)
        and not exists (select from pg_attribute a
          where a.attrelid = c.oid and a.attname = 'tenant_id' and a.attnotnull and not a.attisdropped)`
  },
  {
    id: 'C3',
    code: 'table_without_policy',
    title: 'every table that the server can reach has a policy, and every other one too unless it is a partition',
    text: `select c.relname as name from pg_class c
      where ${isTable} and (${hasTenant('c.oid')} or c.relname in ('tenants', 'users'))
        and not exists (select from pg_policy p where p.polrelid = c.oid)
        and not (c.relispartition and not ${appMay('c.oid')})`
  },
  {
    id: 'C4',
    code: 'policy_not_canonical',
    title: 'the only permissive policy that the server meets on a table of tenants is the canonical one',
    text: `select p.tablename || '.' || p.policyname as name from pg_policies p
      where p.permissive = 'PERMISSIVE' and p.tablename not in ('users', 'tenants') and ${meetsApp}
        and (p.cmd, ${oneLine("coalesce(p.qual, '')")}, ${oneLine("coalesce(p.with_check, '')")})
          is distinct from ('ALL', ${quote(canonicalPredicate)}, ${quote(canonicalPredicate)})`
  },
  {
    id: 'C4 of users and tenants',
    code: 'policy_not_reviewed',
    title: 'the policies of users and tenants are those that were reviewed',
    text: `select p.tablename || '.' || p.policyname as name from pg_policies p
      where p.permissive = 'PERMISSIVE' and p.tablename in ('users', 'tenants') and ${meetsApp}
        and not (
          (p.tablename, p.policyname, p.cmd, ${oneLine('coalesce(p.qual, p.with_check)')}) in (
            ${reviewedPolicies.map((policy) => `(${policy.map(quote).join(', ')})`).join(',\n            ')})
          and ${oneLine('coalesce(p.with_check, p.qual)')} = ${oneLine('coalesce(p.qual, p.with_check)')})`
  },
  {
    id: 'C5',
    code: 'server_role_too_powerful',
    title: 'the server is nobody but itself, owns nothing and can not skip row security',
    text: `select distinct r.rolname::text as name
      from pg_roles login join pg_roles r on pg_has_role(login.oid, r.oid, 'member')
      where login.rolname in ('aggios_app', 'aggios_app_b') and (
        r.rolname not in ('aggios_app', login.rolname) or r.rolsuper or r.rolbypassrls or r.rolcreaterole or r.rolcreatedb or r.rolreplication
        or exists (select from pg_class c where c.relowner = r.oid) or exists (select from pg_proc p where p.proowner = r.oid)
        or exists (select from pg_namespace n where n.nspowner = r.oid)
        or exists (select from pg_database d where d.datdba = r.oid))`
  },
  {
    id: 'C6',
    code: 'view_with_rights_of_owner',
    title: 'a view asks with the rights of who reads it, and nothing is materialized for the server',
    text: `select c.relname as name from pg_class c
      where ${ours('c.relnamespace')} and (
        c.relkind = 'v' and not coalesce((select option_value::boolean from pg_options_to_table(c.reloptions)
          where option_name = 'security_invoker'), false)
        or c.relkind = 'm' and ${appMay('c.oid')})`
  },
  {
    id: 'C7',
    code: 'function_not_reviewed',
    title: "every function that runs with its owner's rights is on the list",
    text: `select p.oid::regprocedure::text as name from pg_proc p
      where p.prosecdef and ${ours('p.pronamespace')} and p.oid::regprocedure::text <> all (${list([...definerFunctions, ...triggerFunctions])})`
  },
  ...privilegeChecks,
  ...changeChecks
]

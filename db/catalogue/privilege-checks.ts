import { type CatalogueCheck, carriesTenant, hasTenant, isTable, ours } from './reviewed.ts'

/*
 * Checks of keys, privileges and functions for checks.ts.
 */

export const privilegeChecks: readonly CatalogueCheck[] = [
  {
    id: 'C8',
    code: 'key_between_tenants',
    title: 'a key that leads to a table of tenants leads from one tenant to the same (such keys skip row security)',
    text: `select f.conname as name from pg_constraint f
      where f.contype = 'f' and ${ours('f.connamespace')} and ${hasTenant('f.confrelid')} and not ${carriesTenant}`
  },
  {
    id: 'C9',
    code: 'unique_among_tenants',
    title: "every unique index of a tenant's table begins with the tenant (otherwise it tells what others have)",
    text: `select i.indexrelid::regclass::text as name from pg_index i join pg_class c on c.oid = i.indrelid
      where ${isTable} and (i.indisunique or i.indisexclusion) and ${hasTenant('c.oid')}
        and not exists (select from pg_attribute a
          where a.attrelid = c.oid and a.attname = 'tenant_id' and a.attnum = i.indkey[0])`
  },
  {
    id: 'C10',
    code: 'server_may_change_schema',
    title: 'the server truncates, refers to, triggers on and creates nothing',
    text: `select c.relname as name from pg_class c
        where ${isTable} and (has_table_privilege('aggios_app', c.oid, 'truncate, references, trigger')
          or has_any_column_privilege('aggios_app', c.oid, 'references'))
      union all
      select nspname || ': create' from pg_namespace n
        where ${ours('n.oid')} and has_schema_privilege('aggios_app', n.oid, 'create')
      union all
      select 'database: ' || r from unnest(array['create', 'temporary']) r
        where has_database_privilege('aggios_app', current_database(), r)`
  },
  {
    id: 'C11',
    code: 'function_claims_leakproof',
    title: 'no function of ours claims to be leakproof (it would see rows before the policy does)',
    text: `select p.oid::regprocedure::text as name from pg_proc p where p.proleakproof and ${ours('p.pronamespace')}`
  },
  {
    id: 'C12',
    code: 'owner_skips_row_security',
    title: 'nothing belongs to a role that skips row security',
    text: `select o.name from (
        select c.relname::text as name, c.relowner as owner from pg_class c where ${ours('c.relnamespace')}
        union all
        select p.oid::regprocedure::text, p.proowner from pg_proc p where ${ours('p.pronamespace')}
        union all
        select n.nspname::text, n.nspowner from pg_namespace n where ${ours('n.oid')}
        union all
        select 'database', d.datdba from pg_database d where d.datname = current_database()
      ) o join pg_roles r on r.oid = o.owner where r.rolsuper or r.rolbypassrls`
  },
  {
    id: 'row security',
    code: 'backup_role_wrong',
    title:
      'only the role of backups skips row security, no role may become it, and it writes and calls nothing of ours',
    text: `select rolname::text as name from pg_roles where rolname like 'aggios%' and rolname <> 'aggios_backup' and rolbypassrls
      union all
      select 'aggios_backup' from pg_roles where rolname = 'aggios_backup'
        and (rolsuper or rolcreaterole or rolcreatedb or rolreplication or not rolbypassrls)
      union all
      select 'member: ' || r.rolname from pg_roles r
        where r.rolname like 'aggios%' and r.rolname <> 'aggios_backup' and pg_has_role(r.oid, 'aggios_backup', 'member')
      union all
      select 'granted: ' || r.rolname from pg_roles r where pg_has_role('aggios_backup', r.oid, 'member')
        and r.rolname not in ('aggios_backup', 'pg_read_all_data', 'pg_read_all_settings', 'pg_read_all_stats', 'pg_checkpoint')
      union all
      select c.relname from pg_class c where ${isTable}
        and (has_table_privilege('aggios_backup', c.oid, 'insert, update, delete, truncate, references, trigger')
          or has_any_column_privilege('aggios_backup', c.oid, 'insert, update, references'))
      union all
      select p.oid::regprocedure::text from pg_proc p
        where p.prosecdef and ${ours('p.pronamespace')} and has_function_privilege('aggios_backup', p.oid, 'execute')`
  },
  {
    id: 'definer owners',
    code: 'definer_function_owner',
    title: "what runs with its owner's rights belongs to the directory, or to the owner where it makes tables",
    text: `select p.oid::regprocedure::text as name from pg_proc p
      where p.prosecdef and ${ours('p.pronamespace')} and p.proowner::regrole::text <>
        case when p.oid::regprocedure::text in ('ensure_audit_partitions()', 'drop_audit_months()', 'drop_audit_partitions(interval)') then 'aggios_owner' else 'aggios_directory' end`
  },
  {
    id: 'definer grants',
    code: 'definer_function_for_everybody',
    title: "what runs with its owner's rights can't be called by everybody",
    text: `select p.oid::regprocedure::text as name from pg_proc p,
        aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g
      where p.prosecdef and ${ours('p.pronamespace')} and g.grantee = 0`
  },
  {
    id: 'definer search path',
    code: 'definer_function_search_path',
    title: "what runs with its owner's rights finds its tables whatever the caller's search path is",
    text: `select p.oid::regprocedure::text as name from pg_proc p
      where p.prosecdef and ${ours('p.pronamespace')} and p.prosqlbody is null
        and not coalesce(p.proconfig && '{"search_path=public, pg_temp"}', false)`
  },
  {
    id: 'password columns',
    code: 'password_hash_readable',
    title: 'the server can not read a password hash, nor which pepper it needs',
    text: `select a.attname as name from pg_attribute a
      where a.attrelid = 'users'::regclass and a.attname in ('password_hash', 'pepper_id')
        and has_column_privilege('aggios_app', a.attrelid, a.attnum, 'select')`
  },
  {
    id: 'audit is append-only',
    code: 'audit_log_changeable',
    title: 'the server changes, deletes and truncates nothing of the audit log, nor of a part of it',
    text: `select c.relname || ': ' || r as name from pg_class c, unnest(array['update', 'delete', 'truncate']) r
      where (c.oid = 'audit_events'::regclass
          or c.oid in (select inhrelid from pg_inherits where inhparent = 'audit_events'::regclass))
        and (has_table_privilege('aggios_app', c.oid, r)
          or r = 'update' and has_any_column_privilege('aggios_app', c.oid, r))`
  },
  {
    id: 'cascades',
    code: 'cascade_between_tenants',
    title: 'no referential action reaches into another tenant (they skip row security)',
    text: `select f.conname as name from pg_constraint f
      where f.contype = 'f' and ${ours('f.connamespace')}
        and (f.confdeltype in ('c', 'n', 'd') or f.confupdtype in ('c', 'n', 'd'))
        and not (${hasTenant('f.confrelid')} and ${carriesTenant})`
  },
  {
    id: 'audit has no keys',
    code: 'audit_log_has_keys',
    title: 'history outlives what it is about: no foreign key from the audit log',
    text: `select f.conname as name from pg_constraint f
      where f.contype = 'f' and (f.conrelid = 'audit_events'::regclass
        or f.conrelid in (select inhrelid from pg_inherits where inhparent = 'audit_events'::regclass))`
  }
]

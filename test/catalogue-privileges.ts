import { type Check, carriesTenant, goodTable, hasTenant, isTable, ours } from './catalogue.ts'

/*
 * Checks of keys, privileges and functions for test/catalogue-checks.ts.
 */

export const keyAndPrivilegeChecks: readonly Check[] = [
  {
    id: 'C8',
    title: 'a key that leads to a table of tenants leads from one tenant to the same (such keys skip row security)',
    text: `select f.conname as name from pg_constraint f
      where f.contype = 'f' and ${ours('f.connamespace')} and ${hasTenant('f.confrelid')} and not ${carriesTenant}`,
    defects: [
      {
        title: 'a key without the tenant',
        plant: `${goodTable('parents')} alter table parents add unique (id);
          ${goodTable('children')} alter table children add constraint bad_fk foreign key (id) references parents (id)`,
        finds: 'bad_fk'
      },
      {
        title: 'a key that has the tenant in the wrong place',
        plant: `${goodTable('parents')} ${goodTable('children')}
          alter table children add constraint bad_fk foreign key (id, tenant_id) references parents (tenant_id, id)`,
        finds: 'bad_fk'
      }
    ]
  },
  {
    id: 'C9',
    title: "every unique index of a tenant's table begins with the tenant (otherwise it tells what others have)",
    text: `select i.indexrelid::regclass::text as name from pg_index i join pg_class c on c.oid = i.indrelid
      where ${isTable} and (i.indisunique or i.indisexclusion) and ${hasTenant('c.oid')}
        and not exists (select from pg_attribute a
          where a.attrelid = c.oid and a.attname = 'tenant_id' and a.attnum = i.indkey[0])`,
    defects: [
      {
        title: 'a key that is unique among all tenants',
        plant: `${goodTable('documents')} create unique index files_key on documents (key)`,
        finds: 'files_key'
      },
      {
        title: 'an expression that is',
        plant: `${goodTable('documents')} create unique index files_key on documents (lower(key), tenant_id)`,
        finds: 'files_key'
      },
      {
        title: 'an exclusion that is',
        plant: `${goodTable('documents')} alter table documents add constraint files_key exclude (key with =)`,
        finds: 'files_key'
      },
      {
        title: 'a primary key that is',
        plant: `${goodTable('documents')} alter table documents drop constraint documents_pkey; alter table documents add primary key (id)`,
        finds: 'documents_pkey'
      },
      {
        title: 'the tenant as a passenger',
        plant: `${goodTable('documents')} create unique index files_key on documents (key) include (tenant_id)`,
        finds: 'files_key'
      }
    ]
  },
  {
    id: 'C10',
    title: 'the server truncates, refers to, triggers on and creates nothing',
    text: `select c.relname as name from pg_class c
        where ${isTable} and (has_table_privilege('aggios_app', c.oid, 'truncate, references, trigger')
          or has_any_column_privilege('aggios_app', c.oid, 'references'))
      union all
      select nspname || ': create' from pg_namespace n
        where ${ours('n.oid')} and has_schema_privilege('aggios_app', n.oid, 'create')
      union all
      select 'database: ' || r from unnest(array['create', 'temporary']) r
        where has_database_privilege('aggios_app', current_database(), r)`,
    defects: [
      { title: 'TRUNCATE', plant: 'grant truncate on sessions to aggios_app', finds: 'sessions' },
      {
        title: 'REFERENCES to one column',
        plant: 'grant references (id) on sessions to aggios_app',
        finds: 'sessions'
      },
      { title: 'TRIGGER, by way of everybody', plant: 'grant trigger on users to public', finds: 'users' },
      {
        title: 'CREATE on the schema',
        plant: 'grant create on schema public to aggios_app',
        finds: 'public: create',
        as: 'postgres'
      },
      {
        title: 'temporary tables, as PostgreSQL has it by default',
        plant: `do $$ begin execute format('grant temporary on database %I to public', current_database()); end $$`,
        finds: 'database: temporary'
      },
      {
        title: 'CREATE on the database',
        plant: `do $$ begin execute format('grant create on database %I to aggios_app', current_database()); end $$`,
        finds: 'database: create'
      }
    ]
  },
  {
    id: 'C11',
    title: 'no function of ours claims to be leakproof (it would see rows before the policy does)',
    text: `select p.oid::regprocedure::text as name from pg_proc p where p.proleakproof and ${ours('p.pronamespace')}`,
    defects: [
      {
        title: 'one that claims it for speed',
        plant: `create function bad_leakproof(value text) returns boolean language sql immutable leakproof return value = 'x';
          alter function bad_leakproof(text) owner to aggios_owner`,
        finds: 'bad_leakproof(text)',
        as: 'postgres'
      }
    ]
  },
  {
    id: 'C12',
    title: 'nothing belongs to a role that skips row security',
    text: `select o.name from (
        select c.relname::text as name, c.relowner as owner from pg_class c where ${ours('c.relnamespace')}
        union all
        select p.oid::regprocedure::text, p.proowner from pg_proc p where ${ours('p.pronamespace')}
        union all
        select n.nspname::text, n.nspowner from pg_namespace n where ${ours('n.oid')}
        union all
        select 'database', d.datdba from pg_database d where d.datname = current_database()
      ) o join pg_roles r on r.oid = o.owner where r.rolsuper or r.rolbypassrls`,
    defects: [
      {
        title: "a superuser's view",
        plant: 'create view bad_view with (security_invoker = true) as select * from sessions',
        finds: 'bad_view',
        as: 'postgres'
      },
      {
        title: "a superuser's function under a name on the list",
        plant: `alter function find_tenant(text) owner to postgres`,
        finds: 'find_tenant(text)',
        as: 'postgres'
      },
      {
        title: 'an owner that is exempt',
        plant: 'alter role aggios_owner bypassrls',
        finds: 'memberships',
        as: 'postgres'
      },
      {
        title: "a superuser's database",
        plant: `do $$ begin execute format('alter database %I owner to postgres', current_database()); end $$`,
        finds: 'database',
        as: 'postgres'
      }
    ]
  },
  {
    id: 'row security',
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
        and r.rolname not in ('aggios_backup', 'pg_read_all_data', 'pg_read_all_settings', 'pg_checkpoint')
      union all
      select c.relname from pg_class c where ${isTable}
        and (has_table_privilege('aggios_backup', c.oid, 'insert, update, delete, truncate, references, trigger')
          or has_any_column_privilege('aggios_backup', c.oid, 'insert, update, references'))
      union all
      select p.oid::regprocedure::text from pg_proc p
        where p.prosecdef and ${ours('p.pronamespace')} and has_function_privilege('aggios_backup', p.oid, 'execute')`,
    defects: [
      {
        title: 'the directory is exempt too',
        plant: 'alter role aggios_directory bypassrls',
        finds: 'aggios_directory',
        as: 'postgres'
      },
      {
        title: 'backups obey row security, and would be empty',
        plant: 'alter role aggios_backup nobypassrls',
        finds: 'aggios_backup',
        as: 'postgres'
      },
      {
        title: 'the owner may become it, without inheriting it',
        plant: 'grant aggios_backup to aggios_owner with inherit false, set true',
        finds: 'member: aggios_owner',
        as: 'postgres'
      },
      {
        title: 'it may write everything',
        plant: 'grant pg_write_all_data to aggios_backup',
        finds: 'granted: pg_write_all_data',
        as: 'postgres'
      },
      { title: 'it writes one column', plant: 'grant update (name) on users to aggios_backup', finds: 'users' },
      {
        title: 'it calls what runs as the directory',
        plant: 'set local role aggios_directory; grant execute on function find_identity(text) to aggios_backup',
        finds: 'find_identity(text)',
        as: 'postgres'
      }
    ]
  },
  {
    id: 'definer owners',
    title: "what runs with its owner's rights belongs to the directory, or to the owner where it makes tables",
    text: `select p.oid::regprocedure::text as name from pg_proc p
      where p.prosecdef and ${ours('p.pronamespace')} and p.proowner::regrole::text <>
        case when p.oid::regprocedure::text in ('ensure_audit_partitions()', 'drop_audit_months()', 'drop_audit_partitions(interval)') then 'aggios_owner' else 'aggios_directory' end`,
    defects: [
      {
        title: 'a function that was never handed over',
        plant: 'alter function find_identity(text) owner to aggios_owner',
        finds: 'find_identity(text)',
        as: 'postgres'
      },
      {
        title: 'one that was handed over too much',
        plant: 'alter function ensure_audit_partitions() owner to aggios_directory',
        finds: 'ensure_audit_partitions()',
        as: 'postgres'
      }
    ]
  },
  {
    id: 'definer grants',
    title: "what runs with its owner's rights can't be called by everybody",
    text: `select p.oid::regprocedure::text as name from pg_proc p,
        aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g
      where p.prosecdef and ${ours('p.pronamespace')} and g.grantee = 0`,
    defects: [
      {
        title: 'the default, which is everybody',
        plant: `create function careless() returns integer language sql security definer return 1`,
        finds: 'careless()'
      },
      {
        title: 'an explicit grant',
        plant: 'set local role aggios_directory; grant execute on function find_identity(text) to public',
        finds: 'find_identity(text)',
        as: 'postgres'
      }
    ]
  },
  {
    id: 'definer search path',
    title: "what runs with its owner's rights finds its tables whatever the caller's search path is",
    text: `select p.oid::regprocedure::text as name from pg_proc p
      where p.prosecdef and ${ours('p.pronamespace')} and p.prosqlbody is null
        and not coalesce(p.proconfig && '{"search_path=public, pg_temp"}', false)`,
    defects: [
      {
        title: 'a body that is looked up when it runs',
        plant: `create function loose() returns bigint language sql security definer as 'select count(*) from sessions'`,
        finds: 'loose()'
      },
      {
        title: 'temporary tables before ours',
        plant: 'alter function ensure_audit_partitions() set search_path = public',
        finds: 'ensure_audit_partitions()'
      }
    ]
  },
  {
    id: 'password columns',
    title: 'the server can not read a password hash, nor which pepper it needs',
    text: `select a.attname as name from pg_attribute a
      where a.attrelid = 'users'::regclass and a.attname in ('password_hash', 'pepper_id')
        and has_column_privilege('aggios_app', a.attrelid, a.attnum, 'select')`,
    defects: [
      { title: 'all of users', plant: 'grant select on users to aggios_app', finds: 'password_hash' },
      { title: 'one column, to everybody', plant: 'grant select (pepper_id) on users to public', finds: 'pepper_id' }
    ]
  },
  {
    id: 'audit is append-only',
    title: 'the server changes, deletes and truncates nothing of the audit log, nor of a part of it',
    text: `select c.relname || ': ' || r as name from pg_class c, unnest(array['update', 'delete', 'truncate']) r
      where (c.oid = 'audit_events'::regclass
          or c.oid in (select inhrelid from pg_inherits where inhparent = 'audit_events'::regclass))
        and (has_table_privilege('aggios_app', c.oid, r)
          or r = 'update' and has_any_column_privilege('aggios_app', c.oid, r))`,
    defects: [
      {
        title: 'one column can be changed',
        plant: 'grant update (detail) on audit_events to aggios_app',
        finds: 'audit_events: update'
      },
      { title: 'DELETE', plant: 'grant delete on audit_events to aggios_app', finds: 'audit_events: delete' },
      { title: 'TRUNCATE', plant: 'grant truncate on audit_events to public', finds: 'audit_events: truncate' },
      {
        title: 'DELETE from one month',
        plant: `do $$ begin
          execute (select format('alter table %I rename to bad; grant delete on bad to aggios_app', inhrelid::regclass)
            from pg_inherits where inhparent = 'audit_events'::regclass order by inhrelid limit 1);
        end $$`,
        finds: 'bad: delete'
      }
    ]
  },
  {
    id: 'cascades',
    title: 'no referential action reaches into another tenant (they skip row security)',
    text: `select f.conname as name from pg_constraint f
      where f.contype = 'f' and ${ours('f.connamespace')}
        and (f.confdeltype in ('c', 'n', 'd') or f.confupdtype in ('c', 'n', 'd'))
        and not (${hasTenant('f.confrelid')} and ${carriesTenant})`,
    defects: [
      {
        title: 'memberships that go with their user',
        plant: `alter table memberships drop constraint memberships_user_id_fkey,
          add constraint bad_cascade foreign key (user_id) references users on delete cascade`,
        finds: 'bad_cascade'
      },
      {
        title: 'everything that goes with its tenant',
        plant: `alter table memberships drop constraint memberships_tenant_id_fkey,
          add constraint bad_cascade foreign key (tenant_id) references tenants on delete cascade`,
        finds: 'bad_cascade'
      },
      {
        title: 'a name that is cleared, also on change',
        plant: `${goodTable('notes')} alter table notes add column author uuid,
          add constraint bad_cascade foreign key (author) references users on update cascade`,
        finds: 'bad_cascade'
      }
    ]
  },
  {
    id: 'audit has no keys',
    title: 'history outlives what it is about: no foreign key from the audit log',
    text: `select f.conname as name from pg_constraint f
      where f.contype = 'f' and (f.conrelid = 'audit_events'::regclass
        or f.conrelid in (select inhrelid from pg_inherits where inhparent = 'audit_events'::regclass))`,
    defects: [
      {
        title: 'a key to its tenant',
        plant: 'alter table audit_events add constraint bad_history foreign key (tenant_id) references tenants',
        finds: 'bad_history'
      }
    ]
  }
]

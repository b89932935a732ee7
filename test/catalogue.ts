/*
 * What must hold of every object in the database, asked of PostgreSQL's own catalogue. Each check names what is wrong, so on a
 * sound schema it names nothing; and each comes with defects that it must name, because a check that can't fail proves nothing.
 */

/** Tables that belong to no tenant, and why that is right: identities and agencies themselves, and the list of migrations. */
export const tablesWithoutTenant = [
  'tenants',
  'users',
  'audit_horizon',
  'audit_retention',
  'audit_statements',
  'object_sweep',
  'plans',
  'schema_compatibility',
  'sign_in_failures',
  'kysely_migration',
  'kysely_migration_lock'
]

/** What answers without, or across, tenants. A function that is not on this list must run with its caller's rights. */
export const definerFunctions = [
  'add_audit_signatures(uuid[],integer[],text,bytea[])',
  'add_audit_statement(text,timestamp with time zone,integer,text,bytea)',
  'advance_object_sweep(text)',
  'advance_store_fence(bigint)',
  'audit_heads_to_sign(text,uuid,integer)',
  'audit_kept_from()',
  'audit_state()',
  'claim_files(integer,interval)',
  'claim_mail(integer,interval)',
  'claim_object_sweep(interval)',
  'count_sign_in_failure(text)',
  'drop_audit_months()',
  'drop_audit_partitions(interval)',
  'due_files(integer)',
  'end_my_identity(interval)',
  'end_my_sessions(uuid,uuid,interval)',
  'ensure_audit_partitions()',
  'files_after(uuid,uuid,integer)',
  'find_account(text)',
  'find_identity(text)',
  'find_tenant(text)',
  'forget_sign_in_failures(text)',
  'founding_wait(integer,interval)',
  'is_known_network(text,inet)',
  'known_objects(uuid[],text[],uuid[])',
  'list_plans()',
  'mail_allowance(text,integer,interval,integer,interval,integer,interval)',
  'miscounted_storage()',
  'my_credentials()',
  'my_sessions(interval)',
  'my_tenants()',
  'peppers_in_use()',
  'prune_audit_seals(integer)',
  'purge_tenant()',
  'release_address(text)',
  'required_step()',
  'revocations_page(uuid,bigint,integer)',
  'revocations_since(xid8)',
  'revocations_unseen(pg_snapshot)',
  'seal_audit(interval)',
  'seal_audit_events(bigint,bytea,bytea)',
  'set_plan(text,integer,integer,bigint)',
  'store_fence()',
  'sweep(integer)',
  'sweep_idempotency_keys(integer)',
  'sweep_invitations(integer)',
  'sweep_outbox(integer)',
  'sweep_sessions(integer,interval)',
  'sweep_sign_in_failures(integer)',
  'tenant_entry(uuid)',
  'tenant_limits(uuid)'
]

/** Called by triggers only, so the server may not call it. */
export const triggerFunctions = ['publish_disabled()', 'remove_sessions()', 'replace_revocation()']

/** As PostgreSQL writes `tenant_id = (select current_tenant_id())`. */
export const canonicalPredicate = '(tenant_id = ( SELECT current_tenant_id() AS current_tenant_id))'

/** The permissive policies that the server's role meets on the two tables whose rows are not one tenant's. */
const reviewedPolicies = [
  ['tenants', 'tenant_isolation', 'ALL', '(id = ( SELECT current_tenant_id() AS current_tenant_id))'],
  ['users', 'own_insert', 'INSERT', '(id = ( SELECT current_user_id() AS current_user_id))'],
  ['users', 'own_update', 'UPDATE', '(id = ( SELECT current_user_id() AS current_user_id))'],
  [
    'users',
    'visible',
    'SELECT',
    '((id = ( SELECT current_user_id() AS current_user_id)) OR (EXISTS ( SELECT FROM memberships m WHERE ((m.tenant_id = ( SELECT current_tenant_id() AS current_tenant_id)) AND (m.user_id = users.id)) OFFSET 0)))'
  ]
]

export type Defect = {
  /** What a hurried change might do. */
  title: string
  plant: string
  /** The name under which the check reports it. */
  finds: string
  /** Who does it; the owner of the tables where nobody is named. */
  as?: 'postgres'
}

export type Check = {
  id: string
  title: string
  /** One row, `name`, for each thing that is wrong. */
  text: string
  defects: readonly Defect[]
}

const quote = (text: string) => `'${text.replaceAll("'", "''")}'`
const list = (texts: readonly string[]) => `array[${texts.map(quote).join(', ')}]::text[]`

const ours = (schema: string) => `${schema}::regnamespace::text !~ '^(pg_|information_schema)'`
const isTable = `c.relkind in ('r', 'p', 'f') and ${ours('c.relnamespace')}`
const hasTenant = (table: string) =>
  `exists (select from pg_attribute a where a.attrelid = ${table} and a.attname = 'tenant_id' and not a.attisdropped)`
const appMay = (oid: string) =>
  `(has_table_privilege('aggios_app', ${oid}, 'select, insert, update, delete, truncate, references, trigger')
    or has_any_column_privilege('aggios_app', ${oid}, 'select, insert, update, references'))`
/** The roles of a row of pg_policies include the server's. */
const meetsApp = `(p.roles && '{public}' or exists (
  select from unnest(p.roles) r join pg_roles on rolname = r where pg_has_role('aggios_app', pg_roles.oid, 'member')))`
const carriesTenant = `exists (
  select from unnest(f.conkey, f.confkey) as k (here, there)
  join pg_attribute a on a.attrelid = f.conrelid and a.attnum = k.here and a.attname = 'tenant_id'
  join pg_attribute b on b.attrelid = f.confrelid and b.attnum = k.there
    and b.attname = case when f.confrelid = 'tenants'::regclass then 'id' else 'tenant_id' end)`
const oneLine = (expression: string) => `regexp_replace(${expression}, '\\s+', ' ', 'g')`

/** A table as it should be, for the defects that are about something else. */
const goodTable = (name: string) => `
  create table ${name} (
    tenant_id uuid not null default current_tenant_id() references tenants,
    id        uuid not null,
    key       text,
    primary key (tenant_id, id)
  );
  alter table ${name} enable row level security;
  alter table ${name} force row level security;
  create policy tenant_isolation on ${name}
    using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()));
  grant select on ${name} to aggios_app;`

export const checks: readonly Check[] = [
  {
    id: 'C1',
    title: 'every table of ours has row security, and its owner obeys it too',
    text: `select c.relname as name from pg_class c
      where ${isTable} and c.relname not like 'kysely\\_migration%' and not (c.relrowsecurity and c.relforcerowsecurity)`,
    defects: [
      { title: 'a new table without it', plant: 'create table bad (tenant_id uuid not null, id uuid)', finds: 'bad' },
      {
        title: 'a new table whose owner is exempt',
        plant: 'create table bad (tenant_id uuid not null, id uuid); alter table bad enable row level security',
        finds: 'bad'
      },
      {
        title: 'a back-fill that forgot to switch it on again',
        plant: 'alter table sessions no force row level security',
        finds: 'sessions'
      },
      { title: 'users without it', plant: 'alter table users disable row level security', finds: 'users' }
    ]
  },
  {
    id: 'C2',
    title: 'every table names its tenant in each row, or is on the list of those that belong to none',
    text: `select c.relname as name from pg_class c
      where ${isTable} and not (c.relname = any (${list(tablesWithoutTenant)}) and c.relnamespace = 'public'::regnamespace)
        and not exists (select from pg_attribute a
          where a.attrelid = c.oid and a.attname = 'tenant_id' and a.attnotnull and not a.attisdropped)`,
    defects: [
      { title: 'a table without a tenant', plant: 'create table unlisted (id uuid)', finds: 'unlisted' },
      { title: 'a tenant that may be null', plant: 'create table bad (tenant_id uuid, id uuid)', finds: 'bad' },
      {
        title: 'a table in another schema under a name on the list',
        plant: 'create schema other; create table other.users (id uuid)',
        finds: 'users'
      }
    ]
  },
  {
    id: 'C3',
    title: 'every table that the server can reach has a policy, and every other one too unless it is a partition',
    text: `select c.relname as name from pg_class c
      where ${isTable} and (${hasTenant('c.oid')} or c.relname in ('tenants', 'users'))
        and not exists (select from pg_policy p where p.polrelid = c.oid)
        and not (c.relispartition and not ${appMay('c.oid')})`,
    defects: [
      {
        title: 'row security and nothing that it could let through',
        plant: `${goodTable('bad')} drop policy tenant_isolation on bad`,
        finds: 'bad'
      },
      {
        title: 'a partition that can be read around its parent',
        plant: `do $$ begin
          execute (select format('alter table %I rename to bad; grant select on bad to aggios_app', c.relname) from pg_class c
            where c.relispartition and c.relkind = 'r' order by c.relname limit 1);
        end $$`,
        finds: 'bad'
      },
      {
        title: 'a partition of which one column can be read',
        plant: `do $$ begin
          execute (select format('alter table %I rename to bad; grant select (action) on bad to aggios_app', c.relname)
            from pg_class c where c.relispartition and c.relkind = 'r' order by c.relname limit 1);
        end $$`,
        finds: 'bad'
      }
    ]
  },
  {
    id: 'C4',
    title: 'the only permissive policy that the server meets on a table of tenants is the canonical one',
    text: `select p.tablename || '.' || p.policyname as name from pg_policies p
      where p.permissive = 'PERMISSIVE' and p.tablename not in ('users', 'tenants') and ${meetsApp}
        and (p.cmd, ${oneLine("coalesce(p.qual, '')")}, ${oneLine("coalesce(p.with_check, '')")})
          is distinct from ('ALL', ${quote(canonicalPredicate)}, ${quote(canonicalPredicate)})`,
    defects: [
      {
        title: 'another one that lets everything through (permissive policies are alternatives)',
        plant: 'create policy open on sessions using (true)',
        finds: 'sessions.open'
      },
      {
        title: 'rows that were meant to be public',
        plant: `${goodTable('documents')} create policy public_files on documents for select using (key like 'public/%')`,
        finds: 'documents.public_files'
      },
      {
        title: 'one for the server alone',
        plant:
          'create policy mine on memberships for select to aggios_app using (user_id = (select current_user_id()))',
        finds: 'memberships.mine'
      },
      {
        title: 'writing that is not checked',
        plant: `alter policy tenant_isolation on audit_events with check (true)`,
        finds: 'audit_events.tenant_isolation'
      },
      {
        title: 'a setting that is compared as it stands',
        plant: `drop policy tenant_isolation on revocations;
          create policy tenant_isolation on revocations using (tenant_id = current_setting('app.tenant_id')::uuid)
            with check (tenant_id = (select current_tenant_id()))`,
        finds: 'revocations.tenant_isolation'
      }
    ]
  },
  {
    id: 'C4 of users and tenants',
    title: 'the policies of users and tenants are those that were reviewed',
    text: `select p.tablename || '.' || p.policyname as name from pg_policies p
      where p.permissive = 'PERMISSIVE' and p.tablename in ('users', 'tenants') and ${meetsApp}
        and not (
          (p.tablename, p.policyname, p.cmd, ${oneLine('coalesce(p.qual, p.with_check)')}) in (
            ${reviewedPolicies.map((policy) => `(${policy.map(quote).join(', ')})`).join(',\n            ')})
          and ${oneLine('coalesce(p.with_check, p.qual)')} = ${oneLine('coalesce(p.qual, p.with_check)')})`,
    defects: [
      {
        title: 'every identity can be seen',
        plant: 'create policy open on users for select using (true)',
        finds: 'users.open'
      },
      {
        title: 'a tenant changes its members',
        plant: `alter policy own_update on users using (exists (
          select from memberships m where m.tenant_id = (select current_tenant_id()) and m.user_id = users.id))`,
        finds: 'users.own_update'
      },
      {
        title: 'a change that is not checked',
        plant: 'alter policy own_update on users with check (true)',
        finds: 'users.own_update'
      },
      {
        title: 'every agency can be seen',
        plant: 'alter policy tenant_isolation on tenants using (true)',
        finds: 'tenants.tenant_isolation'
      }
    ]
  },
  {
    id: 'C5',
    title: 'the server is nobody but itself, owns nothing and can not skip row security',
    text: `select r.rolname::text as name from pg_roles r
      where pg_has_role('aggios_app', r.oid, 'member') and (
        r.rolname <> 'aggios_app' or r.rolsuper or r.rolbypassrls or r.rolcreaterole or r.rolcreatedb or r.rolreplication
        or exists (select from pg_class c where c.relowner = r.oid) or exists (select from pg_proc p where p.proowner = r.oid)
        or exists (select from pg_namespace n where n.nspowner = r.oid)
        or exists (select from pg_database d where d.datdba = r.oid))`,
    defects: [
      {
        title: 'it is made an owner',
        plant: 'grant aggios_owner to aggios_app',
        finds: 'aggios_owner',
        as: 'postgres'
      },
      {
        title: 'it may become the directory, without inheriting it',
        plant: 'grant aggios_directory to aggios_app with inherit false, set true',
        finds: 'aggios_directory',
        as: 'postgres'
      },
      {
        title: 'it is let into the files of the server',
        plant: 'grant pg_read_server_files to aggios_app',
        finds: 'pg_read_server_files',
        as: 'postgres'
      },
      { title: 'it skips row security', plant: 'alter role aggios_app bypassrls', finds: 'aggios_app', as: 'postgres' },
      { title: 'it makes roles', plant: 'alter role aggios_app createrole', finds: 'aggios_app', as: 'postgres' },
      {
        title: 'it owns a table',
        plant: `${goodTable('owned')} alter table owned owner to aggios_app`,
        finds: 'aggios_app',
        as: 'postgres'
      }
    ]
  },
  {
    id: 'C6',
    title: 'a view asks with the rights of who reads it, and nothing is materialized for the server',
    text: `select c.relname as name from pg_class c
      where ${ours('c.relnamespace')} and (
        c.relkind = 'v' and not coalesce((select option_value::boolean from pg_options_to_table(c.reloptions)
          where option_name = 'security_invoker'), false)
        or c.relkind = 'm' and ${appMay('c.oid')})`,
    defects: [
      {
        title: "a view with its owner's rights",
        plant: 'create view bad_view as select * from sessions; grant select on bad_view to aggios_app',
        finds: 'bad_view'
      },
      {
        title: 'one that says no',
        plant: 'create view bad_view with (security_invoker = off) as select * from sessions',
        finds: 'bad_view'
      },
      {
        title: 'a materialized view',
        plant: 'create materialized view bad_mv as select * from sessions; grant select on bad_mv to aggios_app',
        finds: 'bad_mv'
      },
      {
        title: 'one column of a materialized view',
        plant: 'create materialized view bad_mv as select * from sessions; grant select (id) on bad_mv to aggios_app',
        finds: 'bad_mv'
      }
    ]
  },
  {
    id: 'C7',
    title: "every function that runs with its owner's rights is on the list",
    text: `select p.oid::regprocedure::text as name from pg_proc p
      where p.prosecdef and ${ours('p.pronamespace')} and p.oid::regprocedure::text <> all (${list([...definerFunctions, ...triggerFunctions])})`,
    defects: [
      {
        title: 'a convenient one',
        plant: `create function bad_secdef() returns bigint language sql security definer
          begin atomic select count(*) from sessions; end`,
        finds: 'bad_secdef()'
      },
      {
        title: 'one that only a trigger can call',
        plant: `create function bad_trigger() returns trigger language plpgsql security definer set search_path = public, pg_temp
            as 'begin return new; end';
          revoke all on function bad_trigger() from public`,
        finds: 'bad_trigger()'
      },
      {
        title: 'another one under a name on the list',
        plant: `create function find_tenant(id uuid) returns setof tenants language sql security definer
          begin atomic select * from tenants t where t.id = find_tenant.id; end`,
        finds: 'find_tenant(uuid)'
      }
    ]
  },
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

/** The tables whose rows are a tenant's, as PostgreSQL knows them; their partitions are under `partitions`. */
export const tenantTables = `
  select c.relname as name, array(select a.attname::text from pg_attribute a
      where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum) as columns,
    array(select a.attname::text from pg_attribute a where a.attrelid = c.oid and a.attidentity = 'a') as generated,
    array(select a.attname::text from pg_index i join pg_attribute a on a.attrelid = c.oid and a.attnum = any (i.indkey)
      where i.indrelid = c.oid and i.indisprimary) as key,
    array(select p.inhrelid::regclass::text from pg_inherits p where p.inhparent = c.oid order by 1) as partitions
  from pg_class c where ${isTable} and not c.relispartition and ${hasTenant('c.oid')} order by c.relname`

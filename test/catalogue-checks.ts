import { catalogueChecks } from '../db/catalogue/checks.ts'
import { type Defect, goodTable } from './catalogue-defects.ts'
import { keyAndPrivilegeDefects } from './catalogue-privileges.ts'

/*
 * Defects that the checks of the catalogue must find, by the id of the check, because a check that can't fail proves
 * nothing.
 */

const defects: Record<string, readonly Defect[]> = {
  C1: [
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
  ],
  C2: [
    { title: 'a table without a tenant', plant: 'create table unlisted (id uuid)', finds: 'unlisted' },
    { title: 'a tenant that may be null', plant: 'create table bad (tenant_id uuid, id uuid)', finds: 'bad' },
    {
      title: 'a table in another schema under a name on the list',
      plant: 'create schema other; create table other.users (id uuid)',
      finds: 'users'
    }
  ],
  C3: [
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
  ],
  C4: [
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
      plant: 'create policy mine on memberships for select to aggios_app using (user_id = (select current_user_id()))',
      finds: 'memberships.mine'
    },
    {
      title: 'writing that is not checked',
      plant: `alter policy tenant_isolation on audit_events with check (true)`,
      finds: 'audit_events.tenant_isolation'
    },
    {
      title: 'a setting that is compared as it stands',
      plant: `drop policy tenant_isolation on changes;
        create policy tenant_isolation on changes using (tenant_id = current_setting('app.tenant_id')::uuid)
          with check (tenant_id = (select current_tenant_id()))`,
      finds: 'changes.tenant_isolation'
    }
  ],
  'C4 of users and tenants': [
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
  ],
  C5: [
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
    {
      title: 'it may read what backups read',
      plant: 'grant aggios_backup to aggios_app',
      finds: 'aggios_backup',
      as: 'postgres'
    },
    {
      title: 'its other login is let into the files of the server',
      plant: 'grant pg_read_server_files to aggios_app_b',
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
  ],
  C6: [
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
  ],
  C7: [
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
  ],
  C13: [
    { title: 'a trigger that was dropped', plant: 'drop trigger note_updates on users', finds: 'users.name' },
    {
      title: 'a trigger that was switched off',
      plant: 'alter table storage_usage disable trigger note_rows',
      finds: 'storage_usage: insert'
    },
    {
      title: 'a trigger that sessions of replication skip',
      plant: 'alter table tenants enable trigger note_rows',
      finds: 'tenants: delete'
    },
    {
      title: 'a column that was left out',
      plant: `drop trigger note_updates on memberships;
        create trigger note_updates after update on memberships for each row
          when ((old.tenant_id, old.user_id, old.updated_at, old.version) is distinct from
            (new.tenant_id, new.user_id, new.updated_at, new.version)) execute function note_changes();
        alter table memberships enable always trigger note_updates`,
      finds: 'memberships.role'
    },
    { title: 'rows that go together', plant: 'drop trigger note_truncation on users', finds: 'users: truncate' }
  ],
  ...keyAndPrivilegeDefects
}

export const checks = catalogueChecks.map((check) => ({ ...check, defects: defects[check.id] ?? [] }))

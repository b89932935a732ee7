-- Creates the roles and sets who may connect. An administrator runs it in the product's database, once or repeatedly,
-- as a superuser or as a role with CREATEROLE and CREATEDB that owns the database.
--
--   psql --file db/roles.sql 'postgres://…/aggios'
--
-- On an error nothing is changed and psql exits with status 3. Afterwards set passwords for the roles that log in:
--
--   alter role aggios_owner  login password '…';   -- migrates (DATABASE_OWNER_URL)
--   alter role aggios_app    login password '…';   -- serves   (DATABASE_URL)
--   alter role aggios_backup login password '…';   -- makes backups: docs/backups.md
--
-- No role is a superuser, and only the last one bypasses row security:
--   aggios_owner      owns the tables; FORCE ROW LEVEL SECURITY makes it obey the policies like every other role
--   aggios_app        serves requests; owns, creates and truncates nothing
--   aggios_app_b      has the rights of aggios_app and no others; the server logs in as one of the two, so that the password
--                     of the other can be replaced (npm run rotate -- database)
--   aggios_directory  can't log in; owns the few functions that work before a tenant is known, or across tenants
--   aggios_backup     reads the rows of all agencies and starts base backups; writes nothing, and no other role may become it
--
-- Only a superuser can create aggios_backup. Anybody else gets a notice and all the other roles.
--
-- Roles belong to the whole cluster, so runs in several of its databases may race. The script therefore looks before it
-- creates, and ignores the error of a role that another run has just created.

-- by default psql continues after an error and exits with 0; other clients must leave this line out
\set ON_ERROR_STOP on

do $$
declare
  wanted text;
  before text := current_setting('role');
begin
  foreach wanted in array array['aggios_owner', 'aggios_app', 'aggios_app_b', 'aggios_directory'] loop
    if to_regrole(wanted) is null then
      begin
        execute format('create role %I nologin', wanted);
      exception when duplicate_object or unique_violation then null;
      end;
    end if;
  end loop;
  -- the owner may give functions to the directory role, but inherits none of its rights
  if not pg_has_role('aggios_owner', 'aggios_directory', 'set') then
    grant aggios_directory to aggios_owner with inherit false, set true;
  end if;
  -- it has these rights by itself, and can't become the other role
  if not pg_has_role('aggios_app_b', 'aggios_app', 'usage') then
    grant aggios_app to aggios_app_b with inherit true, set false;
  end if;
  if not pg_has_role(current_user, 'aggios_owner', 'set') then
    execute format('grant aggios_owner to %I with inherit false, set true', current_user);
  end if;
  begin
    begin
      if to_regrole('aggios_backup') is null then create role aggios_backup nologin; end if;
    exception when duplicate_object or unique_violation then null;
    end;
    if not (select rolbypassrls from pg_roles where rolname = 'aggios_backup') then
      alter role aggios_backup bypassrls;
    end if;
    foreach wanted in array array['pg_read_all_data', 'pg_read_all_settings', 'pg_read_all_stats', 'pg_checkpoint'] loop
      if not pg_has_role('aggios_backup', wanted, 'usage') then execute format('grant %I to aggios_backup', wanted); end if;
    end loop;
    -- these rights belong to the database, unlike the role
    foreach wanted in array array['pg_backup_start(text, boolean)', 'pg_backup_stop(boolean)', 'pg_switch_wal()',
      'pg_create_restore_point(text)'] loop
      if not has_function_privilege('aggios_backup', wanted, 'execute') then
        execute format('grant execute on function %s to aggios_backup', wanted);
      end if;
    end loop;
  exception when insufficient_privilege then
    raise notice 'the role aggios_backup is not complete, because % is no superuser; everything else is done', current_user;
  end;
  -- the owner of the database also owns its schema public
  if (select datdba <> 'aggios_owner'::regrole from pg_database where datname = current_database()) then
    begin
      execute format('alter database %I owner to aggios_owner', current_database());
    exception when insufficient_privilege then
      raise exception '% can''t give the database % to aggios_owner', current_user, current_database()
        using errcode = 'insufficient_privilege', detail = sqlerrm,
        hint = 'Run it as a superuser, or as a role with CREATEROLE and CREATEDB that owns the database.';
    end;
  end if;
  -- by default PUBLIC may connect and create temporary tables; only the database's owner can revoke this, and for any other
  -- role PostgreSQL only prints a warning
  perform set_config('role', 'aggios_owner', true);
  execute format('revoke all on database %I from public', current_database());
  execute format('grant connect on database %I to aggios_app, aggios_owner, %I', current_database(), session_user);
  if to_regrole('aggios_backup') is not null then
    execute format('grant connect on database %I to aggios_backup', current_database());
  end if;
  perform set_config('role', before, true);
  if exists (
    select from pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba)))
    where datname = current_database() and grantee = 0
  ) then
    raise exception 'everybody may still connect to the database %', current_database()
      using hint = 'Revoke it as who granted it: revoke all on database … from public.';
  end if;
end $$;

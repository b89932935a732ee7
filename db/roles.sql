-- The three roles, and who may connect. Run by an administrator in the product's database, once or any number of times: a
-- superuser, or a role with CREATEROLE and CREATEDB that owns the database.
--
--   psql --file db/roles.sql 'postgres://…/aggios'
--
-- What can't be done is an error, nothing of it is left behind, and psql ends with 3. Then give the first two roles a way in:
--
--   alter role aggios_owner login password '…';   -- migrates (DATABASE_OWNER_URL)
--   alter role aggios_app   login password '…';   -- serves   (DATABASE_URL)
--
-- None is a superuser or skips row security:
--   aggios_owner      owns the tables; FORCE ROW LEVEL SECURITY makes it obey the policies like everybody else
--   aggios_app        serves; owns, creates and truncates nothing
--   aggios_directory  nobody logs in as it; owns the few functions that answer before, or across, tenants
--
-- Roles belong to the cluster and not to a database, so several databases may race here: look first, forgive the loser.

-- psql goes on after an error, and ends with 0, unless it is told; other clients leave this line out
\set ON_ERROR_STOP on

do $$
declare
  wanted text;
  before text := current_setting('role');
begin
  foreach wanted in array array['aggios_owner', 'aggios_app', 'aggios_directory'] loop
    if to_regrole(wanted) is null then
      begin
        execute format('create role %I nologin', wanted);
      exception when duplicate_object or unique_violation then null;
      end;
    end if;
  end loop;
  -- the owner hands functions to the directory, and inherits nothing of what the directory sees
  if not pg_has_role('aggios_owner', 'aggios_directory', 'set') then
    grant aggios_directory to aggios_owner with inherit false, set true;
  end if;
  if not pg_has_role(current_user, 'aggios_owner', 'set') then
    execute format('grant aggios_owner to %I with inherit false, set true', current_user);
  end if;
  -- who owns the database owns its schema public
  if (select datdba <> 'aggios_owner'::regrole from pg_database where datname = current_database()) then
    begin
      execute format('alter database %I owner to aggios_owner', current_database());
    exception when insufficient_privilege then
      raise exception '% can''t give the database % to aggios_owner', current_user, current_database()
        using errcode = 'insufficient_privilege', detail = sqlerrm,
        hint = 'Run it as a superuser, or as a role with CREATEROLE and CREATEDB that owns the database.';
    end;
  end if;
  -- connecting and temporary tables are everybody's by default; only who owns the database can revoke it, and for anybody else
  -- PostgreSQL merely warns
  perform set_config('role', 'aggios_owner', true);
  execute format('revoke all on database %I from public', current_database());
  execute format('grant connect on database %I to aggios_app, aggios_owner, %I', current_database(), session_user);
  perform set_config('role', before, true);
  if exists (
    select from pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba)))
    where datname = current_database() and grantee = 0
  ) then
    raise exception 'everybody may still connect to the database %', current_database()
      using hint = 'Revoke it as who granted it: revoke all on database … from public.';
  end if;
end $$;

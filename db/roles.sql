-- The three roles, and who may connect. Run by an administrator in the product's database, once or any number of times: a
-- superuser, or a role with CREATEROLE that owns the database. Then give the first two a way in:
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

do $$
declare
  wanted text;
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
    execute format('alter database %I owner to aggios_owner', current_database());
  end if;
  -- connecting and temporary tables are everybody's by default
  execute format('revoke all on database %I from public', current_database());
  execute format('grant connect on database %I to aggios_app, aggios_owner, %I', current_database(), session_user);
end $$;

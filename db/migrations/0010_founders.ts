import { type Kysely, sql } from 'kysely'

/**
 * Who made a tenant, so that what one person makes in a day is counted where no restart forgets it, also after they have left. No
 * foreign key: people go, and tenants stay. Tenants of before were made by nobody.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table tenants add column founded_by uuid;
    alter table tenants alter column founded_by set default current_user_id();
    create index tenants_founder on tenants (founded_by, created_at);
    grant select (founded_by, created_at) on tenants to aggios_directory;

    -- Seconds until the user in app.user_id may make one more tenant where so many are allowed in such a time; null: now. Whoever
    -- asks again waits until this transaction ends, so that none is overlooked that is not committed yet.
    create function founding_wait(most integer, life interval) returns integer
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
      oldest timestamptz;
    begin
      if me is null then
        return null;
      end if;
      perform pg_advisory_xact_lock(hashtextextended('aggios tenants of ' || me::text, 0));
      select t.created_at into oldest from tenants t
        where t.founded_by = me and t.created_at > clock_timestamp() - life
        order by t.created_at desc offset most - 1 limit 1;
      return case when found then greatest(1, ceil(extract(epoch from oldest + life - clock_timestamp())))::integer end;
    end $body$;
    revoke all on function founding_wait(integer, interval) from public;
    grant execute on function founding_wait(integer, interval) to aggios_app;
    grant create on schema public to aggios_directory;
    alter function founding_wait(integer, interval) owner to aggios_directory;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * How many files an agency has. A file without bytes takes no room of the quota, but a row and an object all the same.
 *
 * Counted by triggers, so that programs of the version before, which know no count, keep it right too.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table storage_usage add column files bigint not null default 0;
    grant update (files) on storage_usage to aggios_app;

    -- forced row security blinds the owner too
    alter table files no force row level security;
    alter table storage_usage no force row level security;
    update storage_usage u set files = counted.files
    from (select f.tenant_id, count(*) as files from files f group by f.tenant_id) counted
    where u.tenant_id = counted.tenant_id;
    alter table files force row level security;
    alter table storage_usage force row level security;

    -- with the rights, and behind the policies, of whoever changes the files
    create function count_files() returns trigger
      language plpgsql set search_path = public, pg_temp
    as $body$
    begin
      if tg_op = 'INSERT' then
        update storage_usage u set files = u.files + 1 where u.tenant_id = new.tenant_id;
      else
        update storage_usage u set files = u.files - 1 where u.tenant_id = old.tenant_id;
      end if;
      return null;
    end $body$;
    revoke all on function count_files() from public;
    create trigger count_files after insert or delete on files for each row execute function count_files();
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * The oldest program that can serve on this schema, by the newest step that it knows.
 *
 * A program serves on a schema with newer steps than its own: after a rollback, or when an old process starts again during a
 * deployment. A step that old programs can't live with says so in its own file:
 * `update schema_compatibility set required_step = '<the newest step of the oldest program that can>'`.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table schema_compatibility (
      one           boolean primary key default true check (one),
      required_step text not null
    );
    insert into schema_compatibility (required_step) values ('0008_tenant_entry');
    alter table schema_compatibility enable row level security;
    alter table schema_compatibility force row level security;
    create policy migrating on schema_compatibility to aggios_owner using (true);
    create policy directory on schema_compatibility for select to aggios_directory using (true);
    grant select on schema_compatibility to aggios_directory;

    create function required_step() returns text
      language sql stable security definer
    begin atomic
      select c.required_step from schema_compatibility c;
    end;
    revoke all on function required_step() from public;
    grant execute on function required_step() to aggios_app;
    grant create on schema public to aggios_directory;
    alter function required_step() owner to aggios_directory;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * All that a process remembers of one tenant, by its id: a request with a token knows the id before it has read the host, and
 * asks for the tenant and its plan's limits at once.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create function tenant_entry(tenant uuid)
      returns table (id uuid, slug text, status text, settings jsonb,
        requests integer, window_seconds integer, storage_quota bigint)
      language sql stable security definer rows 1
    begin atomic
      select t.id, t.slug, t.status, t.settings, p.requests, p.window_seconds, p.storage_quota
      from tenants t join plans p on p.name = t.plan where t.id = tenant_entry.tenant;
    end;
    revoke all on function tenant_entry(uuid) from public;
    grant execute on function tenant_entry(uuid) to aggios_app;
    grant create on schema public to aggios_directory;
    alter function tenant_entry(uuid) owner to aggios_directory;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

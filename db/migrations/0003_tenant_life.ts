import { type Kysely, sql } from 'kysely'

/**
 * The end of a tenant: suspended at once, purged later. Its audit events stay until their retention is over; the people stay
 * too, since an identity is nobody's but its own.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table tenants add column purge_at timestamptz check (purge_at is null or status = 'suspended');
    create index tenants_purge on tenants (purge_at) where purge_at is not null;
    grant update (status, purge_at) on tenants to aggios_app;

    grant select (purge_at), delete on tenants to aggios_directory;
    grant select (tenant_id), delete on invitations to aggios_directory;
    create policy directory_delete on tenants for delete to aggios_directory using (true);
    create policy directory on invitations to aggios_directory using (true);

    -- Removes one tenant whose time has come, a part at a time, and says which. Called until it says nothing; two callers never
    -- take the same.
    create function purge_tenant() returns uuid
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      gone uuid;
      part constant integer := 5000;
      removed integer;
    begin
      select t.id into gone from tenants t where t.purge_at <= now() order by t.purge_at limit 1 for update skip locked;
      if gone is null then
        return null;
      end if;
      delete from sessions where tenant_id = gone and id in (select s.id from sessions s where s.tenant_id = gone limit part);
      get diagnostics removed = row_count;
      if removed = part then
        return gone;
      end if;
      delete from memberships where tenant_id = gone
        and user_id in (select m.user_id from memberships m where m.tenant_id = gone limit part);
      get diagnostics removed = row_count;
      if removed = part then
        return gone;
      end if;
      delete from outbox where tenant_id = gone;
      delete from invitations where tenant_id = gone;
      insert into audit_events (tenant_id, action, actor_id, target_id) values (gone, 'tenant.purged', null, gone);
      delete from tenants where id = gone;
      -- its slug is free now: nobody may remember whose it was
      insert into revocations (tenant_id, kind, subject, state, expires_at)
        values (gone, 'tenant', gone, 'suspended', now() + interval '1 minute');
      return gone;
    end $body$;
    revoke all on function purge_tenant() from public;
    grant execute on function purge_tenant() to aggios_app;
    -- "for update" asks for the right to update a column
    grant update (purge_at) on tenants to aggios_directory;
    create policy directory_lock on tenants for update to aggios_directory using (true) with check (false);
    grant create on schema public to aggios_directory;
    alter function purge_tenant() owner to aggios_directory;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

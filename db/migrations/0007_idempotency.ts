import { type Kysely, sql } from 'kysely'

/**
 * Replies that are given again to whoever repeats a request under the same Idempotency-Key.
 *
 * A row is written by the transaction of the change that it answers, so one exists exactly when the other does. It goes with the
 * membership of the person who asked: when they leave, end their identity, or the tenant is purged.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table idempotency_keys (
      tenant_id   uuid not null default current_tenant_id(),
      user_id     uuid not null default current_user_id(),
      route       text not null,
      key         text not null,
      -- SHA-256 of what was asked; the same key for something else is a mistake of the client
      fingerprint bytea not null,
      status      integer not null,
      headers     jsonb not null,
      -- byte for byte as it was sent
      body        text not null,
      expires_at  timestamptz not null default now() + interval '24 hours',
      primary key (tenant_id, user_id, route, key),
      foreign key (tenant_id, user_id) references memberships on delete cascade
    );
    create index idempotency_keys_expiry on idempotency_keys (expires_at);

    alter table idempotency_keys enable row level security;
    alter table idempotency_keys force row level security;
    create policy tenant_isolation on idempotency_keys
      using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()));
    -- a reply is for who asked, and not for the others of the tenant
    create policy own_key on idempotency_keys as restrictive to aggios_app
      using (user_id = (select current_user_id())) with check (user_id = (select current_user_id()));
    grant select, insert (route, key, fingerprint, status, headers, body), delete on idempotency_keys to aggios_app;

    grant select (tenant_id, user_id, route, key, expires_at), delete on idempotency_keys to aggios_directory;
    create policy directory on idempotency_keys to aggios_directory using (true);
    create function sweep_idempotency_keys(batch integer) returns bigint
      language sql volatile security definer
    begin atomic
      with dead as (
        delete from idempotency_keys where (tenant_id, user_id, route, key) in (
          select k.tenant_id, k.user_id, k.route, k.key from idempotency_keys k
          where k.expires_at < now() order by k.expires_at limit batch)
        returning 1
      )
      select count(*) from dead;
    end;
    revoke all on function sweep_idempotency_keys(integer) from public;
    grant execute on function sweep_idempotency_keys(integer) to aggios_app;
    grant create on schema public to aggios_directory;
    alter function sweep_idempotency_keys(integer) owner to aggios_directory;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * Files: a row for each, and their bytes elsewhere under a key that the server makes of tenant and id.
 *
 * The row comes first and goes last, so that whatever crashes in between leaves a row from which the sweep finishes or undoes
 * it. The room that a file takes is counted by the statement that changes its row, so that usage is what the rows say.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table files (
      tenant_id    uuid not null default current_tenant_id(),
      id           uuid not null,
      -- pending: bytes are arriving, size is what is reserved for them.  ready: whole.  deleted: can be restored.
      -- removing: the sweep has begun to remove the bytes, and there is no way back
      status       text not null default 'pending' check (status in ('pending', 'ready', 'deleted', 'removing')),
      name         text not null,
      -- without case and accents, to search in
      folded_name  text not null,
      purpose      text,
      content_type text not null default 'application/octet-stream',
      size         bigint not null check (size >= 0),
      sha256       bytea,
      created_by   uuid default current_user_id(),
      created_at   timestamptz not null default now(),
      -- pending: nobody works on it any more.  deleted: no longer restorable.  removing: try again
      expires_at   timestamptz,
      primary key (tenant_id, id),
      check ((expires_at is null) = (status = 'ready')),
      check (sha256 is not null or status in ('pending', 'removing'))
    );
    create index files_expiry on files (expires_at) where expires_at is not null;
    create index files_purpose on files (tenant_id, purpose, id);

    -- A file that arrives by another way than one request: parts that the store has, and what is too little for one.
    create table uploads (
      tenant_id uuid not null default current_tenant_id(),
      id        uuid not null,
      -- what the client announced for a direct upload
      sha256    bytea,
      -- the store's id of an object in parts
      store_id  text,
      received  bigint not null default 0,
      tags      text[] not null default '{}',
      tail      bytea not null default '',
      -- who writes now; whoever comes later takes over, and the one before can write no more
      writer    uuid,
      -- until then somebody puts the whole together and looks at it
      concluding_until timestamptz,
      primary key (tenant_id, id),
      foreign key (tenant_id, id) references files on delete cascade
    );

    create table storage_usage (
      tenant_id uuid primary key default current_tenant_id(),
      bytes     bigint not null check (bytes >= 0)
    );

    do $$
    declare
      name text;
    begin
      foreach name in array array['files', 'uploads', 'storage_usage'] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy tenant_isolation on %I
          using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()))', name);
      end loop;
    end $$;
    grant select, insert (id, name, folded_name, purpose, content_type, size, expires_at),
      update (status, purpose, content_type, size, sha256, expires_at), delete on files to aggios_app;
    grant select, insert (id, sha256, store_id), update (store_id, received, tags, tail, writer, concluding_until),
      delete on uploads to aggios_app;
    grant select, insert (bytes), update (bytes) on storage_usage to aggios_app;
    grant update (logo_url) on tenants to aggios_app;
    grant update (avatar_url) on users to aggios_app;

    -- == the sweep ====================================================================================================

    -- Up to where the store has been searched for objects that nothing refers to.
    create table object_sweep (
      one      boolean primary key default true check (one),
      reached  text not null default '',
      due_at   timestamptz not null default now()
    );
    insert into object_sweep default values;
    alter table object_sweep enable row level security;
    alter table object_sweep force row level security;

    grant select on files, uploads, storage_usage to aggios_directory;
    grant update (status, expires_at) on files to aggios_directory;
    grant delete on storage_usage to aggios_directory;
    grant select (logo_url) on tenants to aggios_directory;
    grant select (avatar_url) on users to aggios_directory;
    grant select, update (reached, due_at) on object_sweep to aggios_directory;
    create policy directory on files to aggios_directory using (true);
    create policy directory on uploads for select to aggios_directory using (true);
    create policy directory on storage_usage to aggios_directory using (true);
    create policy directory on object_sweep to aggios_directory using (true);

    grant create on schema public to aggios_directory;
    set local role aggios_directory;

    -- Files whose time is over, leased to the caller: when it dies, another takes them once the lease is over. Whoever still
    -- writes one of them finds it taken.
    create function claim_files(batch integer, lease interval)
      returns table (tenant_id uuid, id uuid, was text, store_id text)
      language sql volatile security definer
    begin atomic
      with due as materialized (
        select f.tenant_id, f.id, f.status from files f
        where f.expires_at <= now() order by f.expires_at limit batch for update skip locked
      )
      update files f set status = 'removing', expires_at = now() + lease
      from due left join uploads u on u.tenant_id = due.tenant_id and u.id = due.id
      where f.tenant_id = due.tenant_id and f.id = due.id
      returning f.tenant_id, f.id, due.status, u.store_id;
    end;

    -- Where the search of the store goes on; nothing while another searches.
    create function claim_object_sweep(pause interval) returns text
      language sql volatile security definer
    begin atomic
      update object_sweep set due_at = now() + pause where due_at <= now() returning reached;
    end;
    create function advance_object_sweep(reached text) returns void
      language sql volatile security definer
    begin atomic
      update object_sweep set reached = advance_object_sweep.reached;
    end;

    -- Of the objects of owners, those that a row refers to.
    create function known_objects(owners uuid[], kinds text[], ids uuid[]) returns table (owner uuid, kind text, id uuid)
      language sql stable security definer
    begin atomic
      select k.owner, k.kind, k.id
      from unnest(owners, kinds, ids) as k (owner, kind, id)
      where exists (select from files f where f.tenant_id = k.owner and f.id = k.id
          and (k.kind = 'files' or k.kind = 'uploads' and f.status in ('pending', 'removing')))
        or k.kind = 'images' and (
          exists (select from tenants t where t.id = k.owner and t.logo_url like '%/' || k.id)
          or exists (select from users u where u.id = k.owner and u.avatar_url like '%/' || k.id));
    end;

    -- All files, for a comparison with the store.
    create function files_after(after_tenant uuid, after_id uuid, batch integer)
      returns table (tenant_id uuid, id uuid, status text, size bigint)
      language sql stable security definer
    begin atomic
      select f.tenant_id, f.id, f.status, f.size from files f
      where (f.tenant_id, f.id) > (after_tenant, after_id) order by f.tenant_id, f.id limit batch;
    end;

    -- Tenants whose count of bytes is not what their rows say.
    create function miscounted_storage() returns table (tenant_id uuid, counted bigint, actual bigint)
      language sql stable security definer
    begin atomic
      select coalesce(u.tenant_id, f.tenant_id), coalesce(u.bytes, 0), coalesce(f.bytes, 0)::bigint
      from storage_usage u
      full join (select x.tenant_id, sum(x.size) as bytes from files x group by x.tenant_id) f on f.tenant_id = u.tenant_id
      where coalesce(u.bytes, 0) <> coalesce(f.bytes, 0);
    end;

    -- As before, but a tenant's bytes go first: its files are given to the sweep, and the rest follows once they are gone.
    create or replace function purge_tenant() returns uuid
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      gone uuid;
      part constant integer := 5000;
      removed integer;
    begin
      select t.id into gone from tenants t
      where t.purge_at <= now() and (
        exists (select from files f where f.tenant_id = t.id and f.status <> 'removing')
        or not exists (select from files f where f.tenant_id = t.id))
      order by t.purge_at limit 1 for update skip locked;
      if gone is null then
        return null;
      end if;
      update files set status = 'removing', expires_at = now() where tenant_id = gone and id in (
        select f.id from files f where f.tenant_id = gone and f.status <> 'removing' limit part);
      if found then
        return gone;
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
      delete from storage_usage where tenant_id = gone;
      insert into audit_events (tenant_id, action, actor_id, target_id) values (gone, 'tenant.purged', null, gone);
      delete from tenants where id = gone;
      -- its slug is free now: nobody may remember whose it was
      insert into revocations (tenant_id, kind, subject, state, expires_at)
        values (gone, 'tenant', gone, 'suspended', now() + interval '1 minute');
      return gone;
    end $body$;

    do $$
    declare
      signature text;
    begin
      foreach signature in array array['claim_files(integer, interval)', 'claim_object_sweep(interval)',
        'advance_object_sweep(text)', 'known_objects(uuid[], text[], uuid[])', 'files_after(uuid, uuid, integer)',
        'miscounted_storage()'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

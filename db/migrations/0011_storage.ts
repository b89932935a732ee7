import { type Kysely, sql } from 'kysely'

/**
 * A fence around the sweep of the object store, and resumable uploads that are kept in pieces.
 *
 * The version before goes on working: it sweeps without a fence, and it knows nothing of pieces. Where it continues an upload
 * that has pieces it begins again after the last whole part, and `uploads.received` says to both versions where that is.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- == the fence ====================================================================================================

    -- The store carries the same two. A database that is behind the store's generation was restored from a backup.
    alter table object_sweep
      add column installation uuid not null default gen_random_uuid(),
      add column generation bigint not null default 0;
    grant update (generation) on object_sweep to aggios_directory;

    grant create on schema public to aggios_directory;
    set local role aggios_directory;

    -- Who sweeps. The third column changes when a dump is restored, on another server or on the same.
    create function store_fence() returns table (installation uuid, generation bigint, database text)
      language sql stable security definer rows 1
    begin atomic
      select s.installation, s.generation, c.system_identifier || '/' || d.oid
      from object_sweep s, pg_control_system() c, pg_database d where d.datname = current_database();
    end;

    -- The next generation, which is after this one too.
    create function advance_store_fence(after bigint) returns bigint
      language sql volatile security definer
    begin atomic
      update object_sweep set generation = greatest(object_sweep.generation, after) + 1 returning object_sweep.generation;
    end;

    -- What claim_files would take, which stays as it is.
    create function due_files(batch integer) returns table (tenant_id uuid, id uuid, was text)
      language sql stable security definer
    begin atomic
      select f.tenant_id, f.id, f.status from files f where f.expires_at <= now() order by f.expires_at limit batch;
    end;

    do $$
    declare
      signature text;
    begin
      foreach signature in array array['store_fence()', 'advance_store_fence(bigint)', 'due_files(integer)'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    reset role;
    revoke create on schema public from aggios_directory;

    -- == uploads in pieces ============================================================================================

    -- What has arrived of a resumable upload and is too little for a part of the store. A piece belongs to the upload while the
    -- upload has received as many bytes in parts as it says; others are left from before a part was made.
    create table upload_pieces (
      tenant_id uuid not null default current_tenant_id(),
      upload_id uuid not null,
      received  bigint not null,
      -- where the piece stands in the whole
      position  bigint not null,
      content   bytea not null,
      primary key (tenant_id, upload_id, received, position),
      foreign key (tenant_id, upload_id) references uploads on delete cascade
    );
    -- bytes of strangers are rarely made smaller by it
    alter table upload_pieces alter column content set storage external;
    alter table upload_pieces enable row level security;
    alter table upload_pieces force row level security;
    create policy tenant_isolation on upload_pieces
      using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()));
    grant select, insert (upload_id, received, position, content), update (content), delete on upload_pieces to aggios_app;

    -- The bytes of the pieces, and what had been received when they were written.
    alter table uploads
      add column pieced bigint not null default 0,
      add column pieced_from bigint not null default 0;
    grant update (pieced, pieced_from) on uploads to aggios_app;

    -- Whoever is removed from an agency goes on with none of their uploads, so the room for them is free.
    create function give_up_uploads_of_removed() returns trigger
      language plpgsql set search_path = public, pg_temp
    as $body$
    begin
      update files f set status = 'removing', expires_at = now()
      from removed r join uploads u on u.tenant_id = r.tenant_id
      where f.tenant_id = u.tenant_id and f.id = u.id and f.created_by = r.user_id and f.status = 'pending';
      return null;
    end $body$;
    create trigger give_up_uploads after delete on memberships referencing old table as removed
      for each statement execute function give_up_uploads_of_removed();
  `.execute(db)
}

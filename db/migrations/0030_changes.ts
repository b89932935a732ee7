import { type Kysely, sql } from 'kysely'

/**
 * The change feed: `revocations` becomes `changes`, and also says what processes may no longer remember of a read.
 *
 * Triggers write these entries, in the transaction of the change. So no path of code, no migration and no operator at a
 * prompt changes a row that a remembered read shows without every process learning of it. A change of a column that no such
 * read shows writes nothing: neither a sign-in nor a refresh does.
 *
 * The version before reads and writes `revocations`, which is a view of the older kinds of entries now. What its poll reads has
 * the new kinds as well, which it ignores.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table revocations rename to changes;
    alter index revocations_pkey rename to changes_pkey;
    alter index revocations_xid rename to changes_xid;
    alter index revocations_expiry rename to changes_expiry;

    --   kind user:   subject = user id     the person, in one agency, or in all of them where the tenant is the nil UUID
    --   kind agency: subject = tenant id   anything of the agency; the nil UUID: anything of all agencies
    --   kind usage:  subject = tenant id   the bytes that it stores
    --   kind swept:  state = transaction   entries of the three kinds above up to this transaction were removed
    -- Whoever reads on from a snapshot in which that transaction was not over may have missed one, and forgets everything. So
    -- neither a clock that jumps nor a transaction that takes hours makes anybody miss a change.
    alter table changes drop constraint revocations_kind_check;
    alter table changes add constraint changes_kind_check
      check (kind in ('session', 'sessions', 'member', 'tenant', 'plan', 'user', 'agency', 'usage', 'swept'));
    grant update (expires_at) on changes to aggios_directory;

    create view revocations with (security_invoker = true) as
      select tenant_id, id, xid, kind, subject, state, expires_at, created_at from changes
      where kind in ('session', 'sessions', 'member', 'tenant', 'plan');
    grant insert (kind, subject, state, expires_at) on revocations to aggios_app;
    grant select, insert (tenant_id, kind, subject, state, expires_at), delete on revocations to aggios_directory;

    -- The newest entry of a subject comes first, before all dead ones that a long transaction keeps from being removed. One
    -- dies with each write of a subject, so they are removed early.
    drop index revocations_subject;
    create index changes_subject on changes (tenant_id, kind, subject, id);
    alter table changes set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

    drop trigger replace_revocation on changes;
    create trigger replace_revocation before insert on changes
      for each row when (new.kind in ('session', 'sessions', 'member', 'tenant')) execute function replace_revocation();

    grant create on schema public to aggios_directory;

    -- Functions with a parsed body follow the table. The others name it: they are made anew with its new name.
    do $$
    declare
      f record;
    begin
      for f in
        select p.oid, p.proowner::regrole::text as owner from pg_proc p
        where p.pronamespace = 'public'::regnamespace and p.prosqlbody is null and p.prosrc ~ '\\mrevocations\\M'
      loop
        execute format('set role %s', f.owner);
        execute regexp_replace(pg_get_functiondef(f.oid), '\\mrevocations\\M', 'changes', 'g');
        reset role;
      end loop;
    end $$;

    set role aggios_directory;

    -- One entry of a subject stays, but where two transactions write at once: none waits for the other, and the sweep removes what
    -- is left. A transaction writes one for all of its changes of a subject that follow each other. Whoever writes through the
    -- gate is told by the message, so that its process need not wait for the feed.
    create function note_change(agency uuid, what text, about uuid) returns void
      language plpgsql volatile set search_path = public, pg_temp set enable_seqscan = off set enable_sort = off
    as $body$
    declare
      noted constant text := concat_ws(' ', pg_current_xact_id(), what, agency, about);
    begin
      if current_setting('app.noted', true) = noted then
        return;
      end if;
      perform set_config('app.noted', noted, true);
      delete from changes c where (c.tenant_id, c.id) in (
        select o.tenant_id, o.id from changes o where o.tenant_id = agency and o.kind = what and o.subject = about
        order by o.id desc limit 1 for update skip locked);
      insert into changes (tenant_id, kind, subject, expires_at) values (agency, what, about, now() + interval '1 minute');
      if current_setting('app.request', true) <> '' then
        raise info using errcode = 'AG001', message = format('%s %s %s', what, agency, about);
      end if;
    end $body$;

    create function note_changes() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      nobody constant uuid := '00000000-0000-0000-0000-000000000000';
    begin
      if tg_op = 'TRUNCATE' then
        perform note_change(nobody, 'agency', nobody);
      elsif tg_table_name = 'users' then
        perform note_change(nobody, 'user', old.id);
      elsif tg_table_name = 'tenants' then
        perform note_change(old.id, 'agency', old.id);
      elsif tg_table_name = 'memberships' then
        if tg_op = 'UPDATE' and (old.tenant_id, old.user_id) = (new.tenant_id, new.user_id) then
          perform note_change(old.tenant_id, 'user', old.user_id);
        else
          if tg_op <> 'INSERT' then
            perform note_change(old.tenant_id, 'agency', old.tenant_id);
          end if;
          if tg_op <> 'DELETE' then
            perform note_change(new.tenant_id, 'agency', new.tenant_id);
          end if;
        end if;
      else
        if tg_op <> 'INSERT' then
          perform note_change(old.tenant_id, 'usage', old.tenant_id);
        end if;
        if tg_op <> 'DELETE' then
          perform note_change(new.tenant_id, 'usage', new.tenant_id);
        end if;
      end if;
      return null;
    end $body$;

    -- As revocations_unseen. The entries for remembered reads are told whenever they become visible, also after their end.
    create function changes_unseen(seen pg_snapshot)
      returns table (snapshot text, tenant_id uuid, kind text, subject uuid, state text, seconds_left double precision)
      language sql stable security definer rows 10 set enable_seqscan = off
    begin atomic
      select u.snapshot, u.tenant_id, u.kind, u.subject, u.state, ceil(date_part('epoch', u.expires_at - now()))
      from (
        select pg_current_snapshot()::text as snapshot, 0 as id, null::uuid as tenant_id, null as kind,
          null::uuid as subject, null as state, null::timestamptz as expires_at
        union all
        select null, c.id, c.tenant_id, c.kind, c.subject, c.state, c.expires_at
        from changes c where c.xid >= pg_snapshot_xmax(seen) and (c.expires_at > now() or c.kind in ('user', 'agency', 'usage'))
        union all
        select null, c.id, c.tenant_id, c.kind, c.subject, c.state, c.expires_at
        from changes c where c.xid = any (array(select pg_snapshot_xip(seen)))
          and (c.expires_at > now() or c.kind in ('user', 'agency', 'usage'))
      ) u
      where case when u.kind = 'swept' then u.state::xid8 >= pg_snapshot_xmin(seen) else true end
      order by u.id;
    end;

    -- As revocations_page, without the entries for remembered reads: whoever reads all of them remembers none.
    create function changes_page(after_tenant uuid, after_id bigint, most integer)
      returns table (found integer, last_tenant uuid, last_id bigint, entries text)
      language sql stable security definer rows 1 set enable_seqscan = off
    begin atomic
      with page as materialized (
        select c.tenant_id, c.id, c.kind, c.subject, c.state, ceil(date_part('epoch', c.expires_at - now()))::bigint as seconds_left
        from changes c
        where (c.tenant_id, c.id) > (after_tenant, after_id) and c.expires_at > now()
          and c.kind in ('session', 'sessions', 'member', 'tenant', 'plan')
        order by c.tenant_id, c.id limit most
      ), last as (
        select p.tenant_id, p.id from page p order by p.tenant_id desc, p.id desc limit 1
      )
      select count(*)::integer, (select l.tenant_id from last l), (select l.id from last l),
        coalesce(string_agg(concat_ws(' ', p.kind, p.tenant_id, p.subject, p.seconds_left, p.state), chr(10)
          order by p.tenant_id, p.id), '')
      from page p;
    end;

    -- As in 0009, and the entries for remembered reads a minute after they were written. One whose transaction, or an older one,
    -- is not over in somebody's snapshot stays. A number from the future comes from another server, by a restored dump. What was
    -- swept before may have had higher numbers: a transaction that lasts for a while may write late.
    create or replace function sweep(batch integer) returns bigint
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      nobody constant uuid := '00000000-0000-0000-0000-000000000000';
      present constant pg_snapshot := pg_current_snapshot();
      dead record;
      newest xid8;
      removed bigint := 0;
      part bigint;
    begin
      if not pg_try_advisory_xact_lock(hashtext('aggios sweep')) then
        return 0;
      end if;
      with gone as (
        delete from changes c where (c.tenant_id, c.id) in (
          select o.tenant_id, o.id from changes o
          where o.expires_at < now() and o.kind in ('user', 'agency', 'usage')
            and (o.xid < pg_snapshot_xmin(present) or o.xid >= pg_snapshot_xmax(present))
          order by o.expires_at limit batch for update skip locked)
        returning c.xid
      )
      select max(gone.xid), count(*) into newest, removed from gone;
      if removed > 0 then
        with replaced as (
          delete from changes c where c.tenant_id = nobody and c.kind = 'swept' and c.subject = nobody returning c.state::xid8 as state
        )
        select least(greatest(newest, max(r.state)), pg_snapshot_xmax(present)) into newest from replaced r;
        insert into changes (tenant_id, kind, subject, state, expires_at)
          values (nobody, 'swept', nobody, newest::text, now() + interval '100 years');
      end if;
      for dead in
        select c.tenant_id, c.id, c.kind, c.subject, c.state from changes c
        where c.expires_at < now() and c.kind not in ('user', 'agency', 'usage', 'swept') order by c.expires_at limit batch
      loop
        exit when removed >= batch;
        if dead.kind = 'sessions' then
          delete from sessions s where s.tenant_id = dead.tenant_id and s.id in (
            select d.id from sessions d
            where d.tenant_id = dead.tenant_id and d.user_id = dead.subject and d.revoked_at is null
              and d.id <= left(dead.state, 36)::uuid and d.id is distinct from nullif(substr(dead.state, 38), '')::uuid
            limit batch);
          get diagnostics part = row_count;
          removed := removed + part;
          exit when part = batch;
        end if;
        delete from changes c where c.tenant_id = dead.tenant_id and c.id = dead.id;
        removed := removed + 1;
      end loop;
      delete from sessions s where (s.tenant_id, s.id) in (
        select d.tenant_id, d.id from sessions d where d.expires_at < now() order by d.expires_at limit batch);
      get diagnostics part = row_count;
      return removed + part;
    end $body$;

    revoke all on function note_change(uuid, text, uuid) from public;
    revoke all on function note_changes() from public;
    -- a trigger is made by the owner of its table
    grant execute on function note_changes() to aggios_owner;
    do $$
    declare
      signature text;
    begin
      foreach signature in array array['changes_unseen(pg_snapshot)', 'changes_page(uuid, bigint, integer)'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    reset role;
    revoke create on schema public from aggios_directory;

    -- == who writes entries ===========================================================================================
    -- The columns are those that remembered reads show, and those that such a read looks for.

    create trigger note_updates after update on users for each row
      when ((old.id, old.email, old.name, old.avatar_url, old.email_verified_at, old.mfa_enabled_at, old.created_at, old.updated_at,
          old.version)
        is distinct from (new.id, new.email, new.name, new.avatar_url, new.email_verified_at, new.mfa_enabled_at, new.created_at,
          new.updated_at, new.version))
      execute function note_changes();
    create trigger note_rows after delete on users for each row execute function note_changes();

    create trigger note_updates after update on memberships for each row
      when ((old.tenant_id, old.user_id, old.role, old.updated_at, old.version)
        is distinct from (new.tenant_id, new.user_id, new.role, new.updated_at, new.version))
      execute function note_changes();
    create trigger note_rows after insert or delete on memberships for each row execute function note_changes();

    create trigger note_updates after update on tenants for each row
      when ((old.id, old.name, old.slug, old.status, old.plan, old.settings, old.logo_url, old.created_at, old.updated_at, old.version)
        is distinct from (new.id, new.name, new.slug, new.status, new.plan, new.settings, new.logo_url, new.created_at,
          new.updated_at, new.version))
      execute function note_changes();
    create trigger note_rows after delete on tenants for each row execute function note_changes();

    create trigger note_updates after update on storage_usage for each row
      when ((old.tenant_id, old.bytes) is distinct from (new.tenant_id, new.bytes))
      execute function note_changes();
    create trigger note_rows after insert or delete on storage_usage for each row execute function note_changes();

    do $$
    declare
      name text;
    begin
      foreach name in array array['users', 'memberships', 'tenants', 'storage_usage'] loop
        execute format('create trigger note_truncation after truncate on %I execute function note_changes()', name);
        -- also in sessions that apply changes of another server
        execute format('alter table %I enable always trigger note_updates', name);
        execute format('alter table %I enable always trigger note_rows', name);
        execute format('alter table %I enable always trigger note_truncation', name);
      end loop;
    end $$;
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * The end of many sessions at once: one mark on the membership instead of a row for each session.
 *
 * Session ids begin with the millisecond in which the session was opened. `ended_through` is the greatest id of some
 * millisecond: every session of the membership up to it is over, but `kept_session`. The database makes the ids while the
 * membership is locked, and above its mark, so no clock of a process is compared and no two sessions have one millisecond.
 *
 * And revocations: one living entry a subject, and reads that return each entry once.
 *
 * The version before goes on working: it does not know the mark, so the newest 100 sessions, which are all that can be open,
 * also get their `revoked_at`; and what it reads (`revocations_since`) names those sessions one by one.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table memberships add column ended_through uuid, add column kept_session uuid;
    grant update (ended_through, kept_session) on memberships to aggios_app, aggios_directory;

    -- Its cascade would remove any number of sessions in one statement. A trigger removes 1,000 and the sweep the rest.
    alter table sessions drop constraint sessions_tenant_id_user_id_fkey;
    create index sessions_open on sessions (tenant_id, user_id, id) where revoked_at is null;
    create index sessions_ended on sessions (revoked_at) where revoked_at is not null;

    --   kind sessions: subject = user id, state = ended_through, and after a space kept_session if there is one
    alter table revocations drop constraint revocations_kind_check;
    alter table revocations add constraint revocations_kind_check
      check (kind in ('session', 'sessions', 'member', 'tenant', 'plan'));
    create index revocations_subject on revocations (tenant_id, kind, subject);

    -- A person has 100 open sessions in an agency at most, and whoever has more loses the oldest.
    alter table sessions no force row level security;
    update sessions s set revoked_at = now()
    from (
      select o.tenant_id, o.id, row_number() over (partition by o.tenant_id, o.user_id order by o.id desc) as place
      from sessions o where o.revoked_at is null and o.expires_at > now()
    ) numbered
    where numbered.place > 100 and s.tenant_id = numbered.tenant_id and s.id = numbered.id;
    alter table sessions force row level security;

    -- == ids and marks ================================================================================================

    create function clock_ms() returns bigint
      language sql volatile parallel safe
      return floor(extract(epoch from clock_timestamp()) * 1000)::bigint;

    -- the first 48 bits
    create function uuid_ms(id uuid) returns bigint
      language sql immutable strict parallel safe
      return ('x' || encode(substring(uuid_send(id) for 6), 'hex'))::bit(48)::bigint;

    create function uuid_with_ms(ms bigint, tail uuid) returns uuid
      language sql immutable strict parallel safe
      return encode(overlay(uuid_send(tail) placing substring(int8send(ms) from 3) from 1 for 6), 'hex')::uuid;

    -- the greatest id of a millisecond
    create function session_mark(ms bigint) returns uuid
      language sql immutable strict parallel safe
      return uuid_with_ms(ms, 'ffffffff-ffff-ffff-ffff-ffffffffffff');

    create function session_is_over(session uuid, ended_through uuid, kept_session uuid) returns boolean
      language sql immutable parallel safe
      return coalesce(session <= ended_through and session is distinct from kept_session, false);

    -- Opens a session of a member of the current tenant, and marks the membership as used. Null: not a member.
    -- More than 100 are never open: one more ends the oldest. A session that an earlier mark has spared is the oldest.
    create function open_session(member uuid, life interval, token_life interval) returns uuid
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    declare
      most constant integer := 100;
      tenant constant uuid := current_tenant_id();
      mark record;
      newest uuid;
      opened uuid;
      surplus uuid;
      above uuid;
      through uuid;
      kept uuid;
    begin
      select m.ended_through, m.kept_session into mark from memberships m
        where m.tenant_id = tenant and m.user_id = member for no key update;
      if not found then
        return null;
      end if;
      through := mark.ended_through;
      kept := mark.kept_session;
      above := coalesce(through, '00000000-0000-0000-0000-000000000000');

      select s.id into newest from sessions s
        where s.tenant_id = tenant and s.user_id = member and s.revoked_at is null order by s.id desc limit 1;
      opened := uuid_with_ms(greatest(clock_ms(), uuid_ms(newest) + 1, uuid_ms(through) + 1), uuid_v7());
      insert into sessions (id, user_id, expires_at) values (opened, member, now() + life);

      select s.id into surplus from sessions s
        where s.tenant_id = tenant and s.user_id = member and s.revoked_at is null and s.id > above
        order by s.id desc offset most limit 1;
      if found then
        through := session_mark(uuid_ms(surplus));
        kept := null;
      elsif kept is not null then
        perform from sessions s
          where s.tenant_id = tenant and s.user_id = member and s.revoked_at is null and s.id > above
          order by s.id desc offset most - 1 limit 1;
        if found then
          kept := null;
        end if;
      end if;

      if through is distinct from mark.ended_through or kept is distinct from mark.kept_session then
        with surplus as materialized (
          (select s.id from sessions s
            where s.tenant_id = tenant and s.user_id = member and s.revoked_at is null and s.id > above and s.id <= through
            order by s.id desc limit most)
          union all
          select s.id from sessions s where s.tenant_id = tenant and s.id = mark.kept_session and s.revoked_at is null
        ), ended as (
          update sessions s set revoked_at = now() from surplus where s.tenant_id = tenant and s.id = surplus.id
          returning s.id
        )
        insert into audit_events (action, actor_id, session_id, detail)
          select 'session.ended', member, ended.id, '{"reason": "too_many"}' from ended;
        insert into revocations (kind, subject, state, expires_at)
          values ('sessions', member, concat_ws(' ', through, kept), now() + token_life);
      end if;
      update memberships m set last_used_at = now(), ended_through = through, kept_session = kept
        where m.tenant_id = tenant and m.user_id = member;
      return opened;
    end $body$;

    -- Ends every open session of a member but "keep", which stays only if it is open itself. No row: there was none to end.
    -- The caller publishes the state. Rows that are written: the membership and the 100 newest sessions.
    create function end_sessions(tenant uuid, member uuid, keep uuid) returns table (ended bigint, state text)
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    declare
      most constant integer := 100;
      mark record;
      above uuid;
      newest uuid;
      kept uuid;
      through uuid;
    begin
      -- a session is opened before this lock is taken, and then it is seen here, or after it, and then its id is above the mark
      select m.ended_through, m.kept_session into mark from memberships m
        where m.tenant_id = tenant and m.user_id = member for no key update;
      if not found then
        return;
      end if;
      above := coalesce(mark.ended_through, '00000000-0000-0000-0000-000000000000');
      select s.id into kept from sessions s
        where s.tenant_id = tenant and s.id = keep and s.user_id = member and s.revoked_at is null
          and not session_is_over(s.id, mark.ended_through, mark.kept_session);
      select count(*) into ended from (
        select s.id from sessions s
          where s.tenant_id = tenant and s.user_id = member and s.revoked_at is null and s.expires_at > now() and s.id > above
        union all
        select s.id from sessions s
          where s.tenant_id = tenant and s.id = mark.kept_session and s.revoked_at is null and s.expires_at > now()
      ) open where open.id is distinct from kept;
      if ended = 0 then
        return;
      end if;
      select s.id into newest from sessions s
        where s.tenant_id = tenant and s.user_id = member and s.revoked_at is null order by s.id desc limit 1;
      through := session_mark(greatest(clock_ms(), uuid_ms(newest), uuid_ms(mark.ended_through)));
      update memberships m set ended_through = through, kept_session = kept
        where m.tenant_id = tenant and m.user_id = member;
      update sessions s set revoked_at = now() where s.tenant_id = tenant and s.id in (
        select o.id from sessions o
        where o.tenant_id = tenant and o.user_id = member and o.revoked_at is null and o.id is distinct from kept
        order by o.id desc limit most);
      state := concat_ws(' ', through, kept);
      return next;
    end $body$;

    do $$
    declare
      signature text;
    begin
      foreach signature in array array['open_session(uuid, interval, interval)', 'end_sessions(uuid, uuid, uuid)'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    grant execute on function end_sessions(uuid, uuid, uuid) to aggios_directory;

    -- Somebody who comes back: sessions of the time before that are not swept yet stay over.
    create function end_former_sessions() returns trigger
      language plpgsql set search_path = public, pg_temp
    as $body$
    declare
      former uuid;
    begin
      select s.id into former from sessions s
        where s.tenant_id = new.tenant_id and s.user_id = new.user_id and s.revoked_at is null order by s.id desc limit 1;
      new.ended_through := session_mark(uuid_ms(former));
      return new;
    end $body$;
    create trigger end_former_sessions before insert on memberships
      for each row execute function end_former_sessions();

    -- == the directory ================================================================================================

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- The first 1,000; the sweep removes the others.
    create function remove_sessions() returns trigger
      language plpgsql security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from sessions s where s.tenant_id = old.tenant_id and s.id in (
        select d.id from sessions d where d.tenant_id = old.tenant_id and d.user_id = old.user_id limit 1000);
      return null;
    end $body$;

    -- One living entry a subject, the newest, which is remembered for as long as the older one would have been.
    -- Two writers of one subject never meet here: each has locked the row that the entry is about.
    create function replace_revocation() returns trigger
      language plpgsql security definer set search_path = public, pg_temp
    as $body$
    declare
      longest timestamptz;
    begin
      with older as (
        delete from revocations r
        where r.tenant_id = new.tenant_id and r.kind = new.kind and r.subject = new.subject and r.expires_at > now()
        returning r.expires_at
      )
      select max(older.expires_at) into longest from older;
      new.expires_at := greatest(new.expires_at, longest);
      return new;
    end $body$;

    create or replace function my_sessions(idle_life interval)
      returns table (id uuid, tenant_id uuid, tenant_slug text, user_agent text, ip inet, created_at timestamptz,
        last_used_at timestamptz, expires_at timestamptz)
      language sql stable security definer rows 10
    begin atomic
      select s.id, s.tenant_id, t.slug, s.user_agent, s.ip, s.created_at, s.rotated_at,
        least(s.expires_at, s.rotated_at + idle_life)
      from memberships m
      join sessions s on s.tenant_id = m.tenant_id and s.user_id = m.user_id
      join tenants t on t.id = m.tenant_id
      where m.user_id = (select current_user_id())
        and s.revoked_at is null and s.expires_at > now() and s.rotated_at + idle_life > now()
        and not session_is_over(s.id, m.ended_through, m.kept_session);
    end;

    -- Ends sessions of the user in app.user_id, in all tenants: "one" of them, or all but "keep" by one mark a tenant.
    create or replace function end_my_sessions(one uuid, keep uuid, token_life interval) returns bigint
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
      agency uuid;
      over record;
      total bigint := 0;
    begin
      if one is not null then
        with mine as materialized (
          select s.tenant_id, s.id
          from memberships m join sessions s on s.tenant_id = m.tenant_id and s.user_id = m.user_id
          where m.user_id = me and s.id = one and s.id is distinct from keep
            and s.revoked_at is null and s.expires_at > now()
            and not session_is_over(s.id, m.ended_through, m.kept_session)
          for no key update of s
        ), ended as (
          update sessions s set revoked_at = now() from mine where s.tenant_id = mine.tenant_id and s.id = mine.id
          returning s.tenant_id, s.id
        ), published as (
          insert into revocations (tenant_id, kind, subject, expires_at)
          select tenant_id, 'session', id, now() + token_life from ended
          returning 1
        ), audited as (
          insert into audit_events (tenant_id, action, session_id) select tenant_id, 'session.ended', id from ended
        )
        select count(*) into total from published;
        return total;
      end if;

      for agency in select m.tenant_id from memberships m where m.user_id = me order by m.tenant_id loop
        select e.ended, e.state into over from end_sessions(agency, me, keep) e;
        continue when not found;
        insert into revocations (tenant_id, kind, subject, state, expires_at)
          values (agency, 'sessions', me, over.state, now() + token_life);
        insert into audit_events (tenant_id, action, target_id, detail)
          values (agency, 'user.sessions_ended', me, jsonb_build_object('ended', over.ended));
        total := total + over.ended;
      end loop;
      return total;
    end $body$;

    -- As before, and the mark of each membership is published: the sweep finds the sessions that are left by it.
    create or replace function end_my_identity(token_life interval) returns text
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me uuid := current_user_id();
      agency uuid;
    begin
      perform from memberships o
        where o.role = 'owner'
          and o.tenant_id in (select m.tenant_id from memberships m where m.user_id = me and m.role = 'owner')
        order by o.tenant_id, o.user_id
        for update;
      if exists (
        select from memberships m
        where m.user_id = me and m.role = 'owner' and not exists (
          select from memberships o where o.tenant_id = m.tenant_id and o.role = 'owner' and o.user_id <> me)
      ) then
        return 'last_owner';
      end if;
      for agency in select m.tenant_id from memberships m where m.user_id = me order by m.tenant_id loop
        insert into revocations (tenant_id, kind, subject, state, expires_at)
          select agency, 'sessions', me, e.state, now() + token_life from end_sessions(agency, me, null) e;
      end loop;
      insert into revocations (tenant_id, kind, subject, expires_at)
        select m.tenant_id, 'member', me, now() + token_life from memberships m where m.user_id = me;
      insert into audit_events (tenant_id, action, actor_id, target_id)
        select m.tenant_id, 'user.deleted', me, me from memberships m where m.user_id = me;
      delete from memberships where user_id = me;
      delete from users where id = me;
      return 'ended';
    end $body$;

    -- Revocations that were not visible in the snapshot "seen": those of transactions that began later, and of those that
    -- were under way. Each is returned once, however long some other transaction stays open. The first row is the
    -- snapshot of this read, which is the "seen" of the next one.
    -- Without seqscan: a plan that is made before "seen" is known expects a third of the table.
    create function revocations_unseen(seen pg_snapshot)
      returns table (snapshot text, tenant_id uuid, kind text, subject uuid, state text, seconds_left double precision)
      language sql stable security definer rows 10 set enable_seqscan = off
    begin atomic
      select u.snapshot, u.tenant_id, u.kind, u.subject, u.state, ceil(date_part('epoch', u.expires_at - now()))
      from (
        select pg_current_snapshot()::text as snapshot, 0 as id, null::uuid as tenant_id, null as kind,
          null::uuid as subject, null as state, null::timestamptz as expires_at
        union all
        select null, r.id, r.tenant_id, r.kind, r.subject, r.state, r.expires_at
        from revocations r where r.xid >= pg_snapshot_xmax(seen) and r.expires_at > now()
        union all
        select null, r.id, r.tenant_id, r.kind, r.subject, r.state, r.expires_at
        from revocations r where r.xid = any (array(select pg_snapshot_xip(seen))) and r.expires_at > now()
      ) u
      order by u.id;
    end;

    -- All living revocations, a page at a time by the primary key. A page is one text with a line for each: a million rows of
    -- their own would cost a reader several times as much.
    --   line: kind, tenant, subject, seconds left, state; between them a space
    create function revocations_page(after_tenant uuid, after_id bigint, most integer)
      returns table (found integer, last_tenant uuid, last_id bigint, entries text)
      language sql stable security definer rows 1 set enable_seqscan = off
    begin atomic
      with page as materialized (
        select r.tenant_id, r.id, r.kind, r.subject, r.state, ceil(date_part('epoch', r.expires_at - now()))::bigint as seconds_left
        from revocations r
        where (r.tenant_id, r.id) > (after_tenant, after_id) and r.expires_at > now()
        order by r.tenant_id, r.id limit most
      ), last as (
        select p.tenant_id, p.id from page p order by p.tenant_id desc, p.id desc limit 1
      )
      select count(*)::integer, (select l.tenant_id from last l), (select l.id from last l),
        coalesce(string_agg(concat_ws(' ', p.kind, p.tenant_id, p.subject, p.seconds_left, p.state), chr(10)
          order by p.tenant_id, p.id), '')
      from page p;
    end;

    -- For the version before, which knows no marks: it is told of each session that a mark has ended and that may have a
    -- living access token.
    create or replace function revocations_since(seen xid8)
      returns table (next xid8, id bigint, tenant_id uuid, kind text, subject uuid, state text, expires_at timestamptz)
      language sql stable security definer rows 10
    begin atomic
      select pg_snapshot_xmin(pg_current_snapshot()), r.id, r.tenant_id,
        case r.kind when 'sessions' then 'session' else r.kind end, coalesce(s.id, r.subject),
        case when r.kind <> 'sessions' then r.state end, r.expires_at
      from (values (1)) as always (one)
      left join (
        revocations r left join sessions s on r.kind = 'sessions' and s.tenant_id = r.tenant_id and s.user_id = r.subject
          and s.id <= left(r.state, 36)::uuid and s.id is distinct from nullif(substr(r.state, 38), '')::uuid
          and s.rotated_at > r.created_at - (r.expires_at - r.created_at)
      ) on r.xid >= seen and r.expires_at > now()
      order by r.id;
    end;

    -- Removes what can no longer matter. Any process calls it now and then; one works, the others find nothing to do.
    -- A dead mark goes together with the sessions below it that were not ended one by one, a batch at a time.
    create or replace function sweep(batch integer) returns bigint
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      dead record;
      removed bigint := 0;
      part bigint;
    begin
      if not pg_try_advisory_xact_lock(hashtext('aggios sweep')) then
        return 0;
      end if;
      for dead in
        select r.tenant_id, r.id, r.kind, r.subject, r.state from revocations r
        where r.expires_at < now() order by r.expires_at limit batch
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
        delete from revocations r where r.tenant_id = dead.tenant_id and r.id = dead.id;
        removed := removed + 1;
      end loop;
      delete from sessions s where (s.tenant_id, s.id) in (
        select d.tenant_id, d.id from sessions d where d.expires_at < now() order by d.expires_at limit batch);
      get diagnostics part = row_count;
      return removed + part;
    end $body$;

    -- Removes sessions that were ended so long ago.
    create function sweep_sessions(batch integer, age interval) returns bigint
      language sql volatile security definer
    begin atomic
      with dead as (
        delete from sessions where (tenant_id, id) in (
          select s.tenant_id, s.id from sessions s
          where s.revoked_at < now() - age order by s.revoked_at limit batch for update skip locked)
        returning 1
      )
      select count(*) from dead;
    end;

    do $$
    declare
      signature text;
    begin
      foreach signature in array array['revocations_unseen(pg_snapshot)', 'revocations_page(uuid, bigint, integer)',
        'sweep_sessions(integer, interval)'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    revoke all on function remove_sessions() from public;
    revoke all on function replace_revocation() from public;
    -- a trigger is made by the owner of its table
    grant execute on function remove_sessions() to aggios_owner;
    grant execute on function replace_revocation() to aggios_owner;
    reset role;
    revoke create on schema public from aggios_directory;

    create trigger remove_sessions after delete on memberships for each row execute function remove_sessions();
    -- Entries of kind plan are about all plans at once and live for a minute: two changes need not wait for each other.
    create trigger replace_revocation before insert on revocations for each row when (new.kind <> 'plan')
      execute function replace_revocation();
  `.execute(db)
}

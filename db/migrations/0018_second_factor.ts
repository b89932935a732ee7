import { type Kysely, sql } from 'kysely'

/**
 * Second factors: a secret for one-time codes (TOTP) and recovery codes for each person who wants them, or whose agency
 * demands them.
 *
 * A factor belongs to an identity and not to an agency. The server has no right to the table. It calls the functions
 * below, which show and change the factor of the user in `app.user_id` only.
 *
 * The version before knows no factors. Its way to open a session (`open_session` with three parameters) now refuses
 * where a factor is needed, so an old process lets nobody in without one.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- when the factor was confirmed; null: no factor
    alter table users add column mfa_enabled_at timestamptz;
    grant select (mfa_enabled_at) on users to aggios_app, aggios_directory;
    grant update (mfa_enabled_at) on users to aggios_directory;

    -- authenticated_at: the last proof of a password or a factor; null in rows of before, which count from created_at.
    -- mfa_at: the last proof of a factor; null: none was used in this session.
    alter table sessions add column authenticated_at timestamptz, add column mfa_at timestamptz;
    alter table sessions alter column authenticated_at set default now();
    grant insert (authenticated_at, mfa_at), update (authenticated_at, mfa_at) on sessions to aggios_app;

    -- Whether an agency with these settings demands a second factor by now. Compares texts of one format (RFC 3339 in UTC
    -- with milliseconds), so that no value of the settings can fail a sign-in.
    create function mfa_is_required(settings jsonb) returns boolean
      language sql stable parallel safe
      return coalesce((settings ->> 'mfa_required_from') collate "C"
        <= to_char(now() at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'), false);

    -- As in 0009, and the session knows when the person proved who they are, and by what.
    create function open_session(member uuid, life interval, token_life interval, authenticated timestamptz, factor_used timestamptz)
      returns uuid
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
      insert into sessions (id, user_id, expires_at, authenticated_at, mfa_at)
        values (opened, member, now() + life, coalesce(authenticated, now()), factor_used);

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

    create or replace function open_session(member uuid, life interval, token_life interval) returns uuid
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    begin
      if exists (
        select from users u, tenants t
        where u.id = member and t.id = current_tenant_id() and (u.mfa_enabled_at is not null or mfa_is_required(t.settings))
      ) then
        return null;
      end if;
      return open_session(member, life, token_life, null, null);
    end $body$;
    revoke all on function open_session(uuid, interval, interval, timestamptz, timestamptz) from public;
    grant execute on function open_session(uuid, interval, interval, timestamptz, timestamptz) to aggios_app;

    -- == factors ======================================================================================================

    -- One row a person. It is pending until it is confirmed, and a pending one is replaced by the next.
    create table second_factors (
      user_id        uuid primary key references users,
      -- another one for each new secret
      id             uuid not null,
      -- encrypted by the server, with a key that the database never sees
      secret         bytea not null,
      key_id         text not null,
      -- the time step of the last code that was accepted; it and the ones before are used up
      last_step      bigint not null default 0,
      -- wrong codes in a row
      failures       integer not null default 0,
      -- digests of the recovery codes that are left
      recovery_codes bytea[] not null default '{}',
      -- tokens with which a sign-in was completed in the last minutes: none of them is good again
      used_tokens    uuid[] not null default '{}',
      created_at     timestamptz not null default now(),
      confirmed_at   timestamptz
    );
    create index second_factors_key on second_factors (key_id) where confirmed_at is not null;
    alter table second_factors enable row level security;
    alter table second_factors force row level security;
    create policy directory on second_factors to aggios_directory using (true);
    grant select, insert, update, delete on second_factors to aggios_directory;

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- The user in app.user_id, with what is needed to check a code.
    create function my_factor()
      returns table (email text, password_version integer, disabled_at timestamptz, id uuid, secret bytea, key_id text,
        last_step bigint, failures integer, confirmed boolean, recovery_codes bytea[])
      language sql stable security definer rows 1
    begin atomic
      select u.email, u.password_version, u.disabled_at, f.id, f.secret, f.key_id, f.last_step, f.failures,
        f.confirmed_at is not null, f.recovery_codes
      from users u left join second_factors f on f.user_id = u.id
      where u.id = (select current_user_id());
    end;

    -- Keeps a new secret until it is confirmed. False: there is a confirmed one, which stays.
    create function start_my_factor(factor uuid, sealed bytea, key text) returns boolean
      language sql volatile security definer
    begin atomic
      with started as (
        insert into second_factors as f (user_id, id, secret, key_id)
        values ((select current_user_id()), factor, sealed, key)
        on conflict (user_id) do update
          set id = excluded.id, secret = excluded.secret, key_id = excluded.key_id, last_step = 0, failures = 0,
            created_at = now()
          where f.confirmed_at is null
        returning 1
      )
      select exists (select from started);
    end;

    -- Confirms the pending factor by its first code. Null: there is no such pending factor.
    create function confirm_my_factor(factor uuid, step bigint, codes bytea[]) returns timestamptz
      language sql volatile security definer
    begin atomic
      with confirmed as (
        update second_factors f
        set confirmed_at = now(), last_step = step, failures = 0, recovery_codes = codes, used_tokens = '{}'
        where f.user_id = (select current_user_id()) and f.id = factor and f.confirmed_at is null
        returning f.user_id
      ), marked as (
        update users u set mfa_enabled_at = now(), version = u.version + 1, updated_at = now()
        from confirmed c where u.id = c.user_id
        returning u.mfa_enabled_at
      )
      select mfa_enabled_at from marked;
    end;

    -- Uses a code up: that of a time step, or a recovery code by its digest. Null: it was used before, or is none.
    -- Callers of one person wait for each other at the row and decide by its newest version, so one of them succeeds.
    -- "token" is remembered for longer than a token lives. "sealed" replaces the secret, encrypted anew.
    create function use_my_factor(factor uuid, step bigint, code bytea, token uuid, sealed bytea, key text)
      returns timestamptz
      language sql volatile security definer
    begin atomic
      update second_factors f
      set last_step = coalesce(step, f.last_step), failures = 0, recovery_codes = array_remove(f.recovery_codes, code),
        used_tokens = case when token is null then f.used_tokens
          else array(select t from unnest(f.used_tokens) t where uuid_ms(t) > clock_ms() - 600000) || token end,
        secret = coalesce(sealed, f.secret), key_id = coalesce(key, f.key_id)
      where f.user_id = (select current_user_id()) and f.id = factor and f.confirmed_at is not null
        and case when step is not null then f.last_step < step else code = any (f.recovery_codes) end
        and (token is null or token <> all (f.used_tokens))
      returning now();
    end;

    create function count_my_factor_failure(factor uuid) returns void
      language sql volatile security definer
    begin atomic
      update second_factors f set failures = f.failures + 1
      where f.user_id = (select current_user_id()) and f.id = factor;
    end;

    -- Replaces the recovery codes. False: there is no confirmed factor.
    create function renew_my_recovery_codes(factor uuid, codes bytea[]) returns boolean
      language sql volatile security definer
    begin atomic
      with renewed as (
        update second_factors f set recovery_codes = codes
        where f.user_id = (select current_user_id()) and f.id = factor and f.confirmed_at is not null
        returning 1
      )
      select exists (select from renewed);
    end;

    -- Removes the factor, confirmed or not. False: there was no confirmed one.
    create function remove_my_factor() returns boolean
      language sql volatile security definer
    begin atomic
      with removed as (
        delete from second_factors f where f.user_id = (select current_user_id()) returning f.user_id, f.confirmed_at
      ), marked as (
        update users u set mfa_enabled_at = null, version = u.version + 1, updated_at = now()
        from removed r where u.id = r.user_id and r.confirmed_at is not null
        returning 1
      )
      select exists (select from marked);
    end;

    -- Tells every agency of the user in app.user_id what has happened to their factor: each relies on it.
    create function record_my_factor_change(event text, actor uuid, session uuid) returns void
      language sql volatile security definer
    begin atomic
      insert into audit_events (tenant_id, action, actor_id, target_id, session_id)
      select m.tenant_id, event, actor, m.user_id, case when m.tenant_id = (select current_tenant_id()) then session end
      from memberships m
      where m.user_id = (select current_user_id())
        and event in ('user.mfa_enabled', 'user.mfa_removed', 'user.recovery_codes_renewed', 'user.recovery_code_used');
    end;

    -- The keys that stored secrets need, each found by one step in the index.
    create function factor_keys_in_use() returns setof text
      language sql stable security definer
    begin atomic
      with recursive key (id) as (
        select min(key_id) from second_factors where confirmed_at is not null
        union all
        select (select min(f.key_id) from second_factors f where f.confirmed_at is not null and f.key_id > key.id)
        from key where key.id is not null
      )
      select id from key where id is not null;
    end;

    -- No cascade from users: see 0001.
    create function remove_factor() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from second_factors f where f.user_id = old.id;
      return old;
    end $body$;

    -- Wrong codes before a new password were those of somebody else, or are forgiven.
    create function forget_factor_failures() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      update second_factors f set failures = 0 where f.user_id = new.id and f.failures > 0;
      return null;
    end $body$;

    do $$
    declare
      signature text;
    begin
      foreach signature in array array['my_factor()', 'start_my_factor(uuid, bytea, text)',
        'confirm_my_factor(uuid, bigint, bytea[])', 'use_my_factor(uuid, bigint, bytea, uuid, bytea, text)',
        'count_my_factor_failure(uuid)', 'renew_my_recovery_codes(uuid, bytea[])', 'remove_my_factor()',
        'record_my_factor_change(text, uuid, uuid)', 'factor_keys_in_use()'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    revoke all on function remove_factor(), forget_factor_failures() from public;
    -- a trigger is made by the owner of its table
    grant execute on function remove_factor(), forget_factor_failures() to aggios_owner;
    reset role;
    revoke create on schema public from aggios_directory;

    create trigger remove_factor before delete on users for each row execute function remove_factor();
    create trigger forget_factor_failures after update of password_version on users
      for each row when (old.password_version <> new.password_version) execute function forget_factor_failures();
  `.execute(db)
}

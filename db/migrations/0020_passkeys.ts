import { type Kysely, sql } from 'kysely'

/**
 * Passkeys (WebAuthn): credentials that sign in without a password, and that are a second factor beside it.
 *
 * A passkey belongs to an identity and not to an agency. The server has no right to the table. It calls the functions
 * below, which show and change the passkeys of the user in `app.user_id` only.
 *
 * Everybody with a passkey has a row in `second_factors`, for the recovery codes and for the challenges that were used.
 * Its secret is empty when the person has no authenticator app. Every function locks that row first, then passkeys, then
 * the user, so that no two of them wait for each other.
 *
 * The version before knows no passkeys. It asks everybody with `users.mfa_enabled_at` for a factor, takes a row without
 * a confirmed secret for none, and so lets nobody in who has passkeys only. What it calls to remove a factor
 * (`remove_my_factor`) now removes passkeys too: an operator, or a reset of the password, must leave nothing behind that
 * somebody else has set up.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create table passkeys (
      id            uuid primary key,
      user_id       uuid not null references users,
      -- chosen by the authenticator, and unique among all people: it is all that a sign-in names
      credential_id bytea not null unique,
      -- COSE key, RFC 9052
      public_key    bytea not null,
      -- the signature counter of the last use; 0 for authenticators that do not count
      counter       bigint not null,
      transports    text[] not null,
      device_type   text not null check (device_type in ('single_device', 'multi_device')),
      backed_up     boolean not null,
      name          text not null,
      created_at    timestamptz not null default now(),
      last_used_at  timestamptz
    );
    create index passkeys_user on passkeys (user_id, id);
    alter table passkeys enable row level security;
    alter table passkeys force row level security;
    create policy directory on passkeys to aggios_directory using (true);
    grant select, insert, update, delete on passkeys to aggios_directory;

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- == new functions ================================================================================================

    -- The user in app.user_id, with what is needed to check a code or a passkey.
    create function my_factors()
      returns table (email text, name text, password_version integer, disabled_at timestamptz, id uuid, secret bytea,
        key_id text, last_step bigint, failures integer, confirmed boolean, recovery_codes bytea[], passkeys integer)
      language sql stable security definer rows 1
    begin atomic
      select u.email, u.name, u.password_version, u.disabled_at, f.id, f.secret, f.key_id, f.last_step, f.failures,
        f.confirmed_at is not null, f.recovery_codes, (select count(*)::integer from passkeys p where p.user_id = u.id)
      from users u left join second_factors f on f.user_id = u.id
      where u.id = (select current_user_id());
    end;

    create function my_passkeys()
      returns table (id uuid, credential_id bytea, public_key bytea, counter bigint, transports text[], device_type text,
        backed_up boolean, name text, created_at timestamptz, last_used_at timestamptz)
      language sql stable security definer rows 20
    begin atomic
      select p.id, p.credential_id, p.public_key, p.counter, p.transports, p.device_type, p.backed_up, p.name, p.created_at,
        p.last_used_at
      from passkeys p where p.user_id = (select current_user_id()) order by p.id;
    end;

    -- Whose passkey it is. Before a sign-in nobody else says who wants to sign in.
    create function find_passkey(credential bytea)
      returns table (id uuid, user_id uuid, email text, password_version integer, credential_id bytea, public_key bytea,
        transports text[])
      language sql stable security definer rows 1
    begin atomic
      select p.id, p.user_id, u.email, u.password_version, p.credential_id, p.public_key, p.transports
      from passkeys p join users u on u.id = p.user_id where p.credential_id = credential;
    end;

    -- Stores a passkey, and the recovery codes for somebody who has none. added, added_with_codes; or, with nothing changed:
    -- used (the challenge was used before), full (as many as a person may have), taken (somebody has this passkey already).
    -- The caller rolls back when nothing may change.
    create function add_my_passkey(factor uuid, token uuid, passkey uuid, credential bytea, key bytea, first_counter bigint,
        ways text[], device text, is_backed_up boolean, title text, codes bytea[], most integer)
      returns table (outcome text, at timestamptz)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
      result text := 'added';
    begin
      insert into second_factors as f (user_id, id, secret, key_id, used_tokens) values (me, factor, '', '', array[token])
        on conflict (user_id) do update set
          used_tokens = array(select t from unnest(f.used_tokens) t where uuid_ms(t) > clock_ms() - 600000) || token
        where token <> all (f.used_tokens);
      if not found then
        return query select 'used', null::timestamptz;
        return;
      end if;
      if (select count(*) from passkeys p where p.user_id = me) >= most then
        return query select 'full', null::timestamptz;
        return;
      end if;
      insert into passkeys (id, user_id, credential_id, public_key, counter, transports, device_type, backed_up, name)
        values (passkey, me, credential, key, first_counter, ways, device, is_backed_up, title)
        on conflict (credential_id) do nothing;
      if not found then
        return query select 'taken', null::timestamptz;
        return;
      end if;
      update second_factors f set recovery_codes = codes where f.user_id = me and f.recovery_codes = '{}';
      if found then
        result := 'added_with_codes';
      end if;
      update users u set mfa_enabled_at = coalesce(u.mfa_enabled_at, now()), version = u.version + 1, updated_at = now()
        where u.id = me;
      return query select result, now();
    end $body$;

    -- Uses a challenge up by an assertion that was verified. Callers of one person wait for each other at the row, so of those
    -- with one challenge one succeeds. used: the challenge was used before. cloned: the counter is not above the last one, so
    -- there are two copies of the passkey. unknown: the passkey is gone.
    create function use_my_passkey(passkey uuid, token uuid, new_counter bigint, is_backed_up boolean)
      returns table (outcome text, at timestamptz)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
    begin
      update second_factors f set
          used_tokens = array(select t from unnest(f.used_tokens) t where uuid_ms(t) > clock_ms() - 600000) || token
        where f.user_id = me and token <> all (f.used_tokens);
      if not found then
        return query select 'used', null::timestamptz;
        return;
      end if;
      update passkeys p set counter = new_counter, backed_up = is_backed_up, last_used_at = now()
        where p.id = passkey and p.user_id = me and (new_counter > p.counter or (new_counter = 0 and p.counter = 0));
      if found then
        return query select 'proved', now();
      elsif exists (select from passkeys p where p.id = passkey and p.user_id = me) then
        return query select 'cloned', null::timestamptz;
      else
        return query select 'unknown', null::timestamptz;
      end if;
    end $body$;

    -- False: the user has no such passkey.
    create function rename_my_passkey(passkey uuid, title text) returns boolean
      language sql volatile security definer
    begin atomic
      with renamed as (
        update passkeys p set name = title where p.id = passkey and p.user_id = (select current_user_id()) returning 1
      )
      select exists (select from renamed);
    end;

    -- As in 0019, and a passkey is a way in, too. Ids are unique among identities and passkeys.
    create or replace function has_other_way_in(person uuid, without uuid) returns boolean
      language sql stable
    begin atomic
      select exists (select from users u where u.id = person and u.password_hash is not null)
        or exists (select from user_identities i where i.user_id = person and i.id is distinct from without)
        or exists (select from passkeys p where p.user_id = person and p.id is distinct from without);
    end;

    -- Removes a passkey, and with the last factor the recovery codes. removed, last (it is the only way in, and stays) or
    -- unknown. The person's row is locked as in unlink_my_identity, so that of two requests that remove the last two ways in
    -- one is refused.
    create function remove_my_passkey(passkey uuid) returns text
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
    begin
      perform from second_factors f where f.user_id = me for update;
      perform from users u where u.id = me for no key update;
      if not exists (select from passkeys p where p.id = passkey and p.user_id = me) then
        return 'unknown';
      elsif not has_other_way_in(me, passkey) then
        return 'last';
      end if;
      delete from passkeys p where p.id = passkey and p.user_id = me;
      if not exists (select from passkeys p where p.user_id = me) then
        delete from second_factors f where f.user_id = me and f.confirmed_at is null;
        if found then
          update users u set mfa_enabled_at = null, version = u.version + 1, updated_at = now() where u.id = me;
        end if;
      end if;
      return 'removed';
    end $body$;

    -- Removes the authenticator app. The recovery codes stay while there is a passkey. Returns how many passkeys are left, or
    -- null when there was no confirmed app.
    create function remove_my_totp() returns integer
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
      kept integer;
    begin
      perform from second_factors f where f.user_id = me and f.confirmed_at is not null for update;
      if not found then
        return null;
      end if;
      select count(*) into kept from passkeys p where p.user_id = me;
      if kept > 0 then
        update second_factors f set secret = '', key_id = '', last_step = 0, failures = 0, confirmed_at = null
          where f.user_id = me;
      else
        delete from second_factors f where f.user_id = me;
        update users u set mfa_enabled_at = null, version = u.version + 1, updated_at = now() where u.id = me;
      end if;
      return kept;
    end $body$;

    -- As in 0018, and with what it was about.
    create function record_my_factor_change(event text, actor uuid, session uuid, about jsonb) returns void
      language sql volatile security definer
    begin atomic
      insert into audit_events (tenant_id, action, actor_id, target_id, session_id, detail)
      select m.tenant_id, event, actor, m.user_id, case when m.tenant_id = (select current_tenant_id()) then session end, about
      from memberships m
      where m.user_id = (select current_user_id())
        and event in ('user.mfa_enabled', 'user.mfa_removed', 'user.recovery_codes_renewed', 'user.recovery_code_used',
          'user.passkey_added', 'user.passkey_removed', 'user.passkey_refused');
    end;

    -- == functions of 0018 ============================================================================================

    -- As in 0018, but challenges that were used stay used.
    create or replace function confirm_my_factor(factor uuid, step bigint, codes bytea[]) returns timestamptz
      language sql volatile security definer
    begin atomic
      with confirmed as (
        update second_factors f
        set confirmed_at = now(), last_step = step, failures = 0, recovery_codes = codes
        where f.user_id = (select current_user_id()) and f.id = factor and f.confirmed_at is null and f.secret <> ''
        returning f.user_id
      ), marked as (
        update users u set mfa_enabled_at = now(), version = u.version + 1, updated_at = now()
        from confirmed c where u.id = c.user_id
        returning u.mfa_enabled_at
      )
      select mfa_enabled_at from marked;
    end;

    -- As in 0018, and a recovery code is also good for somebody who has passkeys only.
    create or replace function use_my_factor(factor uuid, step bigint, code bytea, token uuid, sealed bytea, key text)
      returns timestamptz
      language sql volatile security definer
    begin atomic
      update second_factors f
      set last_step = coalesce(step, f.last_step), failures = 0, recovery_codes = array_remove(f.recovery_codes, code),
        used_tokens = case when token is null then f.used_tokens
          else array(select t from unnest(f.used_tokens) t where uuid_ms(t) > clock_ms() - 600000) || token end,
        secret = coalesce(sealed, f.secret), key_id = coalesce(key, f.key_id)
      where f.user_id = (select current_user_id()) and f.id = factor
        and (f.confirmed_at is not null
          or (step is null and exists (select from passkeys p where p.user_id = f.user_id)))
        and case when step is not null then f.last_step < step else code = any (f.recovery_codes) end
        and (token is null or token <> all (f.used_tokens))
      returning now();
    end;

    -- As in 0018, also for somebody who has passkeys only.
    create or replace function renew_my_recovery_codes(factor uuid, codes bytea[]) returns boolean
      language sql volatile security definer
    begin atomic
      with renewed as (
        update second_factors f set recovery_codes = codes
        where f.user_id = (select current_user_id()) and f.id = factor
          and (f.confirmed_at is not null or exists (select from passkeys p where p.user_id = f.user_id))
        returning 1
      )
      select exists (select from renewed);
    end;

    -- Removes all factors: the authenticator app, confirmed or not, the passkeys and the recovery codes. False: there was none
    -- that sign-in asked for.
    create or replace function remove_my_factor() returns boolean
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
      had boolean;
    begin
      select f.confirmed_at is not null into had from second_factors f where f.user_id = me for update;
      delete from passkeys p where p.user_id = me;
      had := coalesce(had, false) or found;
      delete from second_factors f where f.user_id = me;
      if had then
        update users u set mfa_enabled_at = null, version = u.version + 1, updated_at = now() where u.id = me;
      end if;
      return had;
    end $body$;

    -- No cascade from users: see 0001.
    create or replace function remove_factor() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from passkeys p where p.user_id = old.id;
      delete from second_factors f where f.user_id = old.id;
      return old;
    end $body$;

    do $$
    declare
      signature text;
    begin
      foreach signature in array array['my_factors()', 'my_passkeys()', 'find_passkey(bytea)',
        'add_my_passkey(uuid, uuid, uuid, bytea, bytea, bigint, text[], text, boolean, text, bytea[], integer)',
        'use_my_passkey(uuid, uuid, bigint, boolean)', 'rename_my_passkey(uuid, text)', 'remove_my_passkey(uuid)',
        'remove_my_totp()', 'record_my_factor_change(text, uuid, uuid, jsonb)'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

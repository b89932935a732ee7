import { type Kysely, sql } from 'kysely'

/**
 * What protects an account: how often its password was guessed in a row, the networks it is known from, the end of the tokens of
 * somebody who is disabled, the release of an address that somebody else registered, and who repeats a refresh.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- Wrong passwords in a row, by address. Addresses that nobody has are counted as well: else the time that a reply takes would
    -- tell which ones there are. Reached through the functions below only.
    create table sign_in_failures (
      email     text collate "C" primary key,
      failures  integer not null default 1,
      failed_at timestamptz not null default now()
    );
    create index sign_in_failures_age on sign_in_failures (failed_at);
    alter table sign_in_failures enable row level security;
    alter table sign_in_failures force row level security;
    create policy directory on sign_in_failures to aggios_directory using (true);
    grant select, insert, update, delete on sign_in_failures to aggios_directory;

    -- One row whatever the address is; without an id nobody has it.
    create function find_account(email text)
      returns table (id uuid, password_hash text, pepper_id text, password_version integer, disabled_at timestamptz,
        email_verified_at timestamptz, failures integer)
      language sql stable security definer rows 1
    begin atomic
      select u.id, u.password_hash, u.pepper_id, u.password_version, u.disabled_at, u.email_verified_at, coalesce(f.failures, 0)
      from (select find_account.email as email) a
      left join users u on u.email = a.email
      left join sign_in_failures f on f.email = a.email;
    end;

    create function count_sign_in_failure(email text) returns integer
      language sql volatile security definer
    begin atomic
      insert into sign_in_failures as f (email) values (count_sign_in_failure.email)
        on conflict (email) do update set failures = f.failures + 1, failed_at = now()
        returning failures;
    end;

    create function forget_sign_in_failures(email text) returns void
      language sql volatile security definer
    begin atomic
      delete from sign_in_failures f where f.email = forget_sign_in_failures.email;
    end;

    -- Removes the counts of addresses that nobody has, a week after the last attempt.
    create function sweep_sign_in_failures(batch integer) returns bigint
      language sql volatile security definer
    begin atomic
      with dead as (
        delete from sign_in_failures where email in (
          select f.email from sign_in_failures f
          where f.failed_at < now() - interval '7 days' and not exists (select from users u where u.email = f.email)
          limit batch for update skip locked)
        returning 1
      )
      select count(*) from dead;
    end;

    -- An address as its network: IPv4 whole, also where it is written within IPv6; IPv6 by /64.
    create function network_of(address inet) returns inet
      language sql immutable parallel safe
      return case
        when family(address) = 4 then set_masklen(address, 32)
        when address << inet '::ffff:0:0/96' then set_masklen(inet '0.0.0.0' + (address - inet '::ffff:0:0'), 32)
        else network(set_masklen(address, 64))
      end;

    -- Whether somebody with this e-mail address opened a session from the network of an address within 90 days.
    create function is_known_network(email text, address inet) returns boolean
      language sql stable security definer
    begin atomic
      select exists (
        select from users u
        join memberships m on m.user_id = u.id
        join sessions s on s.tenant_id = m.tenant_id and s.user_id = m.user_id
        where u.email = is_known_network.email and s.created_at > now() - interval '90 days'
          and network_of(s.ip) = network_of(is_known_network.address));
    end;

    -- Whoever is disabled has no good token anywhere, within a second. The entry outlives every token: ACCESS_TOKEN_TTL is bounded
    -- by ten years. Older entries about the same membership go, so that none of them counts again when this one is gone.
    create function publish_disabled() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from revocations r using memberships m
        where m.user_id = new.id and r.tenant_id = m.tenant_id and r.kind = 'member' and r.subject = new.id;
      insert into revocations (tenant_id, kind, subject, state, expires_at)
        select m.tenant_id, 'member', new.id,
          case when new.disabled_at is null then m.role end,
          now() + case when new.disabled_at is null then interval '1 day' else interval '3660 days' end
        from memberships m where m.user_id = new.id;
      return null;
    end $body$;
    create trigger publish_disabled after update of disabled_at on users
      for each row when ((old.disabled_at is null) <> (new.disabled_at is null)) execute function publish_disabled();

    -- Takes an address from an identity that never showed that it is theirs, for somebody who has just used an invitation that was
    -- mailed to it, in this transaction. The identity is disabled, its password and sessions end, and its agencies stay as they
    -- are, so that nothing of it falls to the new one. Says whose it was; null: nobody had to give it up. Who took it, and from
    -- where, is not told to those other agencies.
    grant select (tenant_id, email, accepted_at) on invitations to aggios_directory;
    grant update (email, password_hash, pepper_id, password_version, disabled_at, version, updated_at) on users
      to aggios_directory;
    grant select (version) on users to aggios_directory;
    grant insert (ip, user_agent, request_id) on audit_events to aggios_directory;
    create function release_address(address text) returns uuid
      language sql volatile security definer
    begin atomic
      with released as (
        update users u set email = u.id::text || '@released.invalid', password_hash = null, pepper_id = null,
          password_version = u.password_version + 1, disabled_at = now(), version = u.version + 1, updated_at = now()
        where u.email = address and u.email_verified_at is null and u.disabled_at is null and exists (
          select from invitations i
          where i.tenant_id = (select current_tenant_id()) and i.email = address and i.accepted_at = now())
        returning u.id
      ), ended as (
        update sessions s set revoked_at = now()
        from released r join memberships m on m.user_id = r.id
        where s.tenant_id = m.tenant_id and s.user_id = m.user_id and s.revoked_at is null
      ), audited as (
        insert into audit_events (tenant_id, action, actor_id, target_id, ip, user_agent, request_id)
        select m.tenant_id, 'user.address_released', null, r.id, null, null, null
        from released r join memberships m on m.user_id = r.id
      )
      select id from released;
    end;

    -- Who used the refresh token last, so that a repetition by somebody else is seen.
    alter table sessions add last_ip inet, add last_user_agent text;
    grant update (last_ip, last_user_agent) on sessions to aggios_app;
    create function record_repeated_refresh(family uuid, owner uuid) returns void
      language sql volatile
    begin atomic
      insert into audit_events (action, actor_id, session_id) values ('session.refresh_repeated', owner, family);
    end;
    revoke all on function record_repeated_refresh(uuid, uuid) from public;
    grant execute on function record_repeated_refresh(uuid, uuid) to aggios_app;

    revoke all on function network_of(inet), publish_disabled() from public;
    grant execute on function network_of(inet) to aggios_directory;
    grant create on schema public to aggios_directory;
    alter function publish_disabled() owner to aggios_directory;
    do $$
    declare
      name text;
    begin
      foreach name in array array['find_account(text)', 'count_sign_in_failure(text)', 'forget_sign_in_failures(text)',
        'sweep_sign_in_failures(integer)', 'is_known_network(text, inet)', 'release_address(text)'] loop
        execute format('revoke all on function %s from public', name);
        execute format('grant execute on function %s to aggios_app', name);
        execute format('alter function %s owner to aggios_directory', name);
      end loop;
    end $$;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

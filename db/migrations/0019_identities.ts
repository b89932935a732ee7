import { type Kysely, sql } from 'kysely'

/**
 * Sign-in by Google, GitHub and an agency's own OpenID Connect provider.
 *
 * An identity at a provider is known by its issuer and subject, and never by its e-mail address. An identity at an agency's own
 * provider belongs to that agency: the same issuer, configured by another agency or for everybody, is another identity there.
 *
 * Identities belong to people, so row security by tenant doesn't fit, and the server has no right to their table. It calls the
 * functions below, most of which act for the user in `app.user_id`.
 *
 * A session that was opened through an agency's own provider stays in that agency, because the agency decides what its provider
 * says. The version before does not know that. A switch there copies `authenticated_at` of the session that it begins with, so
 * that column is -infinity in such a session, and a check refuses the copy.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- == providers of an agency =======================================================================================

    -- At most ten an agency: each takes one of ten places.
    create table identity_providers (
      tenant_id     uuid not null default current_tenant_id() references tenants,
      id            uuid not null,
      place         smallint not null check (place between 1 and 10),
      name          text not null,
      issuer        text collate "C" not null,
      client_id     text not null,
      -- encrypted by the server, with a key that the database never sees
      client_secret bytea not null,
      key_id        text not null,
      -- the claims that have the address and the name
      email_claim   text not null default 'email',
      name_claim    text not null default 'name',
      -- its addresses count as verified although it does not say so
      trust_email   boolean not null default false,
      -- the role of somebody who comes for the first time; null: nobody becomes a member by it
      newcomer_role text check (newcomer_role in ('admin', 'member', 'viewer')),
      version       integer not null default 1,
      created_at    timestamptz not null default now(),
      updated_at    timestamptz not null default now(),
      primary key (tenant_id, id),
      unique (tenant_id, place),
      unique (tenant_id, issuer)
    );

    -- The domains of an agency. One is proven when verified_at is set.
    create table tenant_domains (
      tenant_id   uuid not null default current_tenant_id() references tenants,
      name        text collate "C" not null check (name = lower(name)),
      created_at  timestamptz not null default now(),
      verified_at timestamptz,
      checked_at  timestamptz,
      failures    integer not null default 0,
      primary key (tenant_id, name)
    );

    do $$
    declare
      name text;
    begin
      foreach name in array array['identity_providers', 'tenant_domains'] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy tenant_isolation on %I
          using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()))', name);
        execute format('create policy directory on %I to aggios_directory using (true)', name);
        execute format('grant select, delete on %I to aggios_app, aggios_directory', name);
      end loop;
    end $$;
    grant insert (id, place, name, issuer, client_id, client_secret, key_id, email_claim, name_claim, trust_email, newcomer_role),
      update (name, client_id, client_secret, key_id, email_claim, name_claim, trust_email, newcomer_role, version, updated_at)
      on identity_providers to aggios_app;
    create index identity_providers_key on identity_providers (key_id);

    -- Whether the domain of an address is proven to be this agency's. Addresses are stored in lower case.
    create function tenant_has_domain(address text) returns boolean
      language sql stable
    begin atomic
      select exists (
        select from tenant_domains d
        where d.tenant_id = (select current_tenant_id()) and d.verified_at is not null
          and d.name = lower(substring(address from '[^@]*$')) collate "C" and position('@' in address) > 0);
    end;

    -- == sessions =====================================================================================================

    -- provider_id: the agency's own provider that said who this is; null: a password, a passkey or a provider for everybody.
    -- provider_at: when it said so. authenticated_at is the last proof of a password or a factor, and of no use in such a session.
    -- The checks hold for all rows, because the columns are new; to prove it would stop sign-ins meanwhile.
    alter table sessions add column provider_id uuid, add column provider_at timestamptz,
      add constraint sessions_provider check ((provider_id is null) = (provider_at is null)) not valid,
      add constraint sessions_authenticated
        check (case when provider_id is null then authenticated_at > '-infinity' else authenticated_at = '-infinity' end) not valid;
    create index sessions_provider on sessions (tenant_id, provider_id) where provider_id is not null;
    grant update (provider_id, provider_at, authenticated_at) on sessions to aggios_app;

    -- As with five parameters, and the session knows the agency's provider that it was opened through. Null also when that
    -- provider is gone by now: whoever removes it waits for this transaction, and then sees the session.
    create function open_session(member uuid, life interval, token_life interval, authenticated timestamptz, factor_used timestamptz,
        provider uuid) returns uuid
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    declare
      opened uuid;
    begin
      if provider is null then
        return open_session(member, life, token_life, authenticated, factor_used);
      end if;
      perform from identity_providers p where p.tenant_id = current_tenant_id() and p.id = provider for share;
      if not found then
        return null;
      end if;
      opened := open_session(member, life, token_life, null, factor_used);
      update sessions s set provider_id = provider, provider_at = coalesce(authenticated, now()), authenticated_at = '-infinity'
        where s.tenant_id = current_tenant_id() and s.id = opened;
      return opened;
    end $body$;
    revoke all on function open_session(uuid, interval, interval, timestamptz, timestamptz, uuid) from public;
    grant execute on function open_session(uuid, interval, interval, timestamptz, timestamptz, uuid) to aggios_app;

    -- == identities ===================================================================================================

    create table user_identities (
      id           uuid primary key,
      user_id      uuid not null references users,
      -- google, github, or the id of an agency's provider
      provider     text not null,
      -- the agency to which the identity belongs; null: it is good everywhere
      agency_id    uuid,
      issuer       text collate "C" not null,
      subject      text collate "C" not null check (length(subject) between 1 and 255),
      -- as the provider has said last. It is shown, and decides nothing
      email        text,
      created_at   timestamptz not null default now(),
      last_used_at timestamptz,
      unique nulls not distinct (agency_id, issuer, subject)
    );
    create index user_identities_user on user_identities (user_id);
    create index user_identities_agency on user_identities (agency_id, provider) where agency_id is not null;

    -- What was used once and must not be used again: sign-ins that have come back from a provider, and codes.
    create table one_time_marks (
      id         uuid primary key,
      expires_at timestamptz not null
    );
    create index one_time_marks_expiry on one_time_marks (expires_at);

    do $$
    declare
      name text;
    begin
      foreach name in array array['user_identities', 'one_time_marks'] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy directory on %I to aggios_directory using (true)', name);
        execute format('grant select, insert, update, delete on %I to aggios_directory', name);
      end loop;
    end $$;

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- Uses something up. Of any number of callers, in any number of processes, one gets true.
    create function use_once(mark uuid, life interval) returns boolean
      language sql volatile security definer
    begin atomic
      with used as (
        insert into one_time_marks (id, expires_at) values (mark, now() + life) on conflict do nothing returning 1
      )
      select exists (select from used);
    end;

    create function sweep_one_time_marks(batch integer) returns bigint
      language sql volatile security definer
    begin atomic
      with removed as (
        delete from one_time_marks where id in (
          select m.id from one_time_marks m where m.expires_at < now() limit batch for update skip locked)
        returning 1
      )
      select count(*) from removed;
    end;

    -- Whose identity it is: one that is good everywhere, or with true one of the agency in app.tenant_id.
    create function find_user_identity(of_agency boolean, issuer text, subject text)
      returns table (id uuid, user_id uuid, email text, password_version integer, disabled_at timestamptz)
      language sql stable security definer rows 1
    begin atomic
      select i.id, i.user_id, u.email, u.password_version, u.disabled_at
      from user_identities i join users u on u.id = i.user_id
      where i.issuer = find_user_identity.issuer and i.subject = find_user_identity.subject
        and i.agency_id is not distinct from (case when of_agency then (select current_tenant_id()) end)
        and (not of_agency or i.agency_id is not null);
    end;

    -- Links an identity to the user in app.user_id. linked, or why not: somebody has it (taken), or there is no room (full). A
    -- person has at most twenty that are good everywhere, and one at each provider of an agency. An agency decides what its
    -- provider says, so its identities don't count among the twenty: it could use them up.
    create function link_my_identity(identity uuid, provider text, of_agency boolean, issuer text, subject text, email text)
      returns text
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      perform from users u where u.id = current_user_id() for no key update;
      if of_agency then
        -- an identity that is linked already is taken
        if exists (
          select from user_identities i
          where i.user_id = current_user_id() and i.agency_id = current_tenant_id() and i.provider = link_my_identity.provider
            and (i.issuer, i.subject) <> (link_my_identity.issuer, link_my_identity.subject)
        ) then
          return 'full';
        end if;
      elsif (select count(*) from user_identities i where i.user_id = current_user_id() and i.agency_id is null) >= 20 then
        return 'full';
      end if;
      insert into user_identities (id, user_id, provider, agency_id, issuer, subject, email, last_used_at)
        select identity, current_user_id(), link_my_identity.provider, case when of_agency then current_tenant_id() end,
          link_my_identity.issuer, link_my_identity.subject, link_my_identity.email, now()
        where not of_agency or current_tenant_id() is not null
        on conflict do nothing;
      return case when found then 'linked' else 'taken' end;
    end $body$;

    -- Notes a use of an identity of the user in app.user_id. False: it is gone.
    create function touch_my_identity(identity uuid, email text) returns boolean
      language sql volatile security definer
    begin atomic
      with touched as (
        update user_identities i set last_used_at = now(), email = coalesce(touch_my_identity.email, i.email)
        where i.id = identity and i.user_id = (select current_user_id())
        returning 1
      )
      select exists (select from touched);
    end;

    -- The identities of the user in app.user_id, the newest first.
    create function my_identities()
      returns table (id uuid, provider text, agency_id uuid, name text, email text, created_at timestamptz, last_used_at timestamptz)
      language sql stable security definer rows 3
    begin atomic
      select i.id, i.provider, i.agency_id, p.name, i.email, i.created_at, i.last_used_at
      from user_identities i
      left join identity_providers p on p.tenant_id = i.agency_id and p.id::text = i.provider
      where i.user_id = (select current_user_id())
      order by i.id desc;
    end;

    -- Whether somebody could still sign in without this identity. A mailed link is no way in: it needs the mailbox. A later step
    -- of the schema replaces this function when there is another way in.
    create function has_other_way_in(person uuid, without uuid) returns boolean
      language sql stable
    begin atomic
      select exists (select from users u where u.id = person and u.password_hash is not null)
        or exists (select from user_identities i where i.user_id = person and i.id is distinct from without);
    end;
    revoke all on function has_other_way_in(uuid, uuid) from public;

    -- unlinked, last (it is the only way in, and stays) or unknown. The person's row is locked first, so that of two requests
    -- that remove the last two ways in one is refused.
    create function unlink_my_identity(identity uuid)
      returns table (outcome text, provider text, agency_id uuid)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    #variable_conflict use_column
    declare
      found_one record;
    begin
      perform from users u where u.id = current_user_id() for no key update;
      select i.provider, i.agency_id into found_one from user_identities i
        where i.id = identity and i.user_id = current_user_id();
      if not found then
        return query select 'unknown', null::text, null::uuid;
      elsif not has_other_way_in(current_user_id(), identity) then
        return query select 'last', null::text, null::uuid;
      else
        delete from user_identities i where i.id = identity;
        return query select 'unlinked', found_one.provider, found_one.agency_id;
      end if;
    end $body$;

    -- Removes all identities of the user in app.user_id.
    create function forget_my_identities() returns integer
      language sql volatile security definer
    begin atomic
      with removed as (
        delete from user_identities i where i.user_id = (select current_user_id()) returning 1
      )
      select count(*)::integer from removed;
    end;

    -- The keys that stored secrets of providers need, each found by one step in the index: every process asks at its start.
    create function provider_keys_in_use() returns setof text
      language sql stable security definer
    begin atomic
      with recursive key (id) as (
        select min(key_id) from identity_providers
        union all
        select (select min(p.key_id) from identity_providers p where p.key_id > key.id) from key where key.id is not null
      )
      select id from key where id is not null;
    end;

    -- No cascade from users: see 0001.
    create function forget_identities() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from user_identities i where i.user_id = old.id;
      return old;
    end $body$;

    -- Whoever leaves an agency, or is removed, is a stranger to its provider.
    create function forget_agency_identities() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from user_identities i where i.user_id = old.user_id and i.agency_id = old.tenant_id;
      return null;
    end $body$;

    create function forget_provider_identities() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from user_identities i where i.agency_id = old.tenant_id and i.provider = old.id::text;
      return null;
    end $body$;

    create function forget_tenant_sign_in() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from identity_providers p where p.tenant_id = old.id;
      delete from tenant_domains d where d.tenant_id = old.id;
      return old;
    end $body$;

    do $$
    declare
      signature text;
    begin
      foreach signature in array array['use_once(uuid, interval)', 'sweep_one_time_marks(integer)',
        'find_user_identity(boolean, text, text)', 'link_my_identity(uuid, text, boolean, text, text, text)',
        'touch_my_identity(uuid, text)', 'my_identities()', 'unlink_my_identity(uuid)', 'forget_my_identities()',
        'provider_keys_in_use()'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    revoke all on function forget_identities(), forget_agency_identities(), forget_provider_identities(), forget_tenant_sign_in()
      from public;
    -- a trigger is made by the owner of its table
    grant execute on function forget_identities(), forget_agency_identities(), forget_provider_identities(), forget_tenant_sign_in()
      to aggios_owner;
    reset role;
    revoke create on schema public from aggios_directory;

    create trigger forget_identities before delete on users for each row execute function forget_identities();
    create trigger forget_agency_identities after delete on memberships for each row execute function forget_agency_identities();
    create trigger forget_provider_identities after delete on identity_providers
      for each row execute function forget_provider_identities();
    create trigger forget_tenant_sign_in before delete on tenants for each row execute function forget_tenant_sign_in();
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * One order in which transactions lock what belongs to a person, so that no two of them wait for each other:
 *
 * 1. `one_time_marks`, `invitations`: what is used up
 * 2. `second_factors`, then `passkeys`
 * 3. `users`
 * 4. `account_mails` that wait, then `account_links`
 * 5. `identity_providers`
 * 6. `memberships`, by agency and then by person
 * 7. `user_identities`
 * 8. `sessions`
 *
 * A transaction skips what it does not need. Rows that it only inserts (`audit_events`, `revocations`, new mails) come whenever
 * they come. `lock_my_account` locks all of 2 to 4. What writes links before mails, as `request_email_change` does, calls it first. A
 * lock of `users` is taken in its final strength at once: of two transactions that share a row and then both want more, one has to
 * be given up.
 *
 * Besides: an identity at an agency's own provider is a way into that agency only, and is linked only while the provider and the
 * membership are there. Somebody whose account an agency alone has given them may end it. A sign-in that waits for a factor ends
 * when an identity or the last factor is taken from the account.
 *
 * The version before calls the same functions, and gets the same answers.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- == the order ====================================================================================================

    -- Locks the account of the user in app.user_id until the transaction ends. Mails that were sent are left out: nobody changes
    -- them but the sweep, which waits for nothing.
    create function lock_my_account() returns void
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      perform from second_factors f where f.user_id = current_user_id() for update;
      perform from passkeys p where p.user_id = current_user_id() order by p.id for update;
      perform from users u where u.id = current_user_id() for no key update;
      perform from account_mails m
        where m.user_id = current_user_id() and m.sent_at is null and m.dropped_at is null order by m.id for update;
      perform from account_links l where l.user_id = current_user_id() order by l.id for update;
    end $body$;

    -- As in 0017. The account is locked in the order of this file.
    create or replace function use_account_link(link uuid, purpose text) returns integer
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      version integer;
    begin
      perform lock_my_account();
      update account_links l set used_at = now() from users u
        where l.id = link and l.purpose = use_account_link.purpose and l.user_id = current_user_id()
          and l.used_at is null and l.expires_at > now() and u.id = l.user_id and l.email = u.email
          and l.password_version = u.password_version and u.disabled_at is null
        returning l.password_version into version;
      return version;
    end $body$;

    -- As in 0015. The factors of the account that gives its address up come before the account.
    create or replace function release_address(address text) returns uuid
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      owner constant uuid := (select u.id from users u where u.email = address and u.email_verified_at is null
        and u.disabled_at is null);
      released uuid;
    begin
      perform from second_factors f where f.user_id = owner for update;
      update users u set email = u.id::text || '@released.invalid', password_hash = null, pepper_id = null,
          password_version = u.password_version + 1, disabled_at = now(), version = u.version + 1, updated_at = now()
        where u.id = owner and u.email = address and u.email_verified_at is null and u.disabled_at is null and exists (
          select from invitations i
          where i.tenant_id = current_tenant_id() and i.email = address and i.accepted_at = now())
        returning u.id into released;
      update sessions s set revoked_at = now() from memberships m
        where m.user_id = released and s.tenant_id = m.tenant_id and s.user_id = released and s.revoked_at is null;
      insert into audit_events (tenant_id, action, actor_id, target_id, ip, user_agent, request_id)
        select m.tenant_id, 'user.address_released', null, released, null, null, null
        from memberships m where m.user_id = released;
      return released;
    end $body$;

    -- As in 0009. Everything is locked before anything is removed; a membership that somebody is about to insert waits for the
    -- lock of the user, and then finds no such person.
    create or replace function end_my_identity(token_life interval) returns text
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
      agency uuid;
    begin
      perform lock_my_account();
      perform from users u where u.id = me for update;
      perform from memberships o
        where o.user_id = me or (o.role = 'owner'
          and o.tenant_id in (select m.tenant_id from memberships m where m.user_id = me and m.role = 'owner'))
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

    -- == identities at an agency's own provider =======================================================================

    -- As end_my_identity, for somebody whose account only the provider of the agency in app.tenant_id opens. With nothing changed:
    -- elsewhere (the account is in another agency too), or own_way_in (it has a password, a passkey, or an identity that is good
    -- everywhere, and is ended by it).
    create function end_my_confined_identity(token_life interval) returns text
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
    begin
      perform lock_my_account();
      perform from users u where u.id = me for update;
      if exists (select from memberships m where m.user_id = me and m.tenant_id is distinct from current_tenant_id()) then
        return 'elsewhere';
      elsif exists (select from users u where u.id = me and u.password_hash is not null)
        or exists (select from passkeys p where p.user_id = me)
        or exists (select from user_identities i where i.user_id = me and i.agency_id is null) then
        return 'own_way_in';
      end if;
      return end_my_identity(token_life);
    end $body$;

    -- As in 0019, and gone: the provider of the agency was removed, or the person is no member of it. Both are locked, so that
    -- what removes one of them waits, and then removes the identity too.
    create or replace function link_my_identity(identity uuid, provider text, of_agency boolean, issuer text, subject text, email text)
      returns text
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      perform from users u where u.id = current_user_id() for no key update;
      if of_agency then
        perform from identity_providers p
          where p.tenant_id = current_tenant_id() and p.id::text = link_my_identity.provider for share;
        if not found then
          return 'gone';
        end if;
        perform from memberships m where m.tenant_id = current_tenant_id() and m.user_id = current_user_id() for no key update;
        if not found then
          return 'gone';
        end if;
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
        values (identity, current_user_id(), link_my_identity.provider, case when of_agency then current_tenant_id() end,
          link_my_identity.issuer, link_my_identity.subject, link_my_identity.email, now())
        on conflict do nothing;
      return case when found then 'linked' else 'taken' end;
    end $body$;

    -- As in 0019, and locks in the order of this file what a session by it will lock.
    create or replace function touch_my_identity(identity uuid, email text) returns boolean
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      perform from users u where u.id = current_user_id() for share;
      perform from user_identities i join identity_providers p on p.tenant_id = i.agency_id and p.id::text = i.provider
        where i.id = identity for share of p;
      perform from memberships m where m.tenant_id = current_tenant_id() and m.user_id = current_user_id() for no key update;
      update user_identities i set last_used_at = now(), email = coalesce(touch_my_identity.email, i.email)
        where i.id = identity and i.user_id = current_user_id();
      return found;
    end $body$;

    -- As in 0020, but an identity at an agency's own provider is a way into that agency only. It counts when the person is in no
    -- agency that they could not come into by such an identity.
    create or replace function has_other_way_in(person uuid, without uuid) returns boolean
      language sql stable
    begin atomic
      select exists (select from users u where u.id = person and u.password_hash is not null)
        or exists (select from user_identities i where i.user_id = person and i.agency_id is null and i.id is distinct from without)
        or exists (select from passkeys p where p.user_id = person and p.id is distinct from without)
        or (exists (select from memberships m where m.user_id = person) and not exists (
          select from memberships m where m.user_id = person and not exists (
            select from user_identities i where i.user_id = person and i.agency_id = m.tenant_id and i.id is distinct from without)));
    end;

    -- As in 0019. The memberships, whose sessions end next, come before the identity.
    create or replace function unlink_my_identity(identity uuid)
      returns table (outcome text, provider text, agency_id uuid)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    #variable_conflict use_column
    declare
      found_one record;
    begin
      perform from second_factors f where f.user_id = current_user_id() for update;
      perform from users u where u.id = current_user_id() for no key update;
      perform from memberships m where m.user_id = current_user_id() order by m.tenant_id for no key update;
      select i.provider, i.agency_id into found_one from user_identities i
        where i.id = identity and i.user_id = current_user_id();
      if not found then
        return query select 'unknown', null::text, null::uuid;
      elsif not has_other_way_in(current_user_id(), identity) then
        return query select 'last', null::text, null::uuid;
      else
        delete from user_identities i where i.id = identity;
        -- a sign-in by it that waits for a factor has to begin anew
        update users u set password_version = u.password_version + 1 where u.id = current_user_id();
        return query select 'unlinked', found_one.provider, found_one.agency_id;
      end if;
    end $body$;

    -- An operator unlinks an identity of a person, and ends all their sessions, because somebody may have signed in by it. Also the
    -- last way in: the mail for a forgotten password is left. Each agency that had to do with it sees it, without an actor, and the
    -- person gets a mail. unlinked or unknown.
    create function operate_identity(person uuid, identity uuid, token_life interval) returns text
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      gone record;
    begin
      perform from second_factors f where f.user_id = person for update;
      perform from users u where u.id = person for no key update;
      perform from memberships m where m.user_id = person order by m.tenant_id for no key update;
      delete from user_identities i where i.id = identity and i.user_id = person returning i.provider, i.agency_id into gone;
      if not found then
        return 'unknown';
      end if;
      update users u set password_version = u.password_version + 1 where u.id = person;
      perform operate_account(person, 'sign_out', token_life);
      insert into audit_events (tenant_id, action, actor_id, target_id, detail)
        select m.tenant_id, 'user.identity_unlinked', null, person, jsonb_build_object('provider', gone.provider, 'by', 'operator')
        from memberships m where m.user_id = person and (gone.agency_id is null or m.tenant_id = gone.agency_id);
      insert into account_mails (kind, user_id) values ('identity_unlinked', person);
      return 'unlinked';
    end $body$;

    reset role;
    -- Whoever removes the last factor ends the sign-ins that wait for one: their tokens name the version of the password.
    create function end_waiting_sign_ins() returns trigger language plpgsql
    as $body$
    begin
      new.password_version := old.password_version + 1;
      return new;
    end $body$;
    revoke all on function end_waiting_sign_ins() from public;
    create trigger end_waiting_sign_ins before update of mfa_enabled_at on users
      for each row when (old.mfa_enabled_at is not null and new.mfa_enabled_at is null) execute function end_waiting_sign_ins();
    set role aggios_directory;

    -- what was left of providers and memberships that went at the same moment
    delete from user_identities i where i.agency_id is not null and (
      not exists (select from identity_providers p where p.tenant_id = i.agency_id and p.id::text = i.provider)
      or not exists (select from memberships m where m.tenant_id = i.agency_id and m.user_id = i.user_id));

    revoke all on function lock_my_account(), end_my_confined_identity(interval), operate_identity(uuid, uuid, interval) from public;
    grant execute on function lock_my_account(), end_my_confined_identity(interval), operate_identity(uuid, uuid, interval)
      to aggios_app;
    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

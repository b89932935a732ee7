import { type Kysely, sql } from 'kysely'

/**
 * An agency can demand that its people come in through its own provider. Break-glass owners may come in otherwise, so that
 * somebody can when the provider is down: each has a password and a second factor.
 *
 * The rule holds for everybody else, whatever their address is, and goes on when the proof of a domain is lost. A rule by
 * addresses would open the other doors again at that moment.
 *
 * Whether somebody has to is decided where sessions are opened and renewed, so that no door is forgotten. What the version
 * before calls to open a session (`open_session` with five parameters or fewer) refuses too, and a trigger stops it from
 * renewing one.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- since when the people of the agency have to come in through this provider
    alter table identity_providers add column enforced_from timestamptz;
    create unique index identity_providers_enforced on identity_providers (tenant_id) where enforced_from is not null;
    grant update (enforced_from) on identity_providers to aggios_app;
    alter table memberships add column break_glass boolean not null default false;
    create index memberships_break_glass on memberships (tenant_id, user_id) where break_glass;
    grant update (break_glass) on memberships to aggios_app;
    -- to lock the rows
    grant update (updated_at) on identity_providers to aggios_directory;

    -- The provider through which somebody has to come into the agency in app.tenant_id. Null: they may come as they do, by
    -- this provider or by none.
    create function required_provider(break_glass boolean, provider uuid) returns uuid
      language sql stable
      return (select p.id from identity_providers p
        where p.tenant_id = (select current_tenant_id()) and p.enforced_from is not null and not break_glass
          and p.id is distinct from provider);

    -- == sessions =====================================================================================================

    alter function open_session(uuid, interval, interval, timestamptz, timestamptz) rename to start_session;

    -- Null, and nothing has changed, for somebody who has to come in through a provider, or through another one. A break-glass
    -- owner who comes in otherwise is recorded, and all owners are told.
    create function admit(member uuid, provider uuid) returns boolean
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    declare
      is_break_glass boolean;
      address text;
    begin
      select m.break_glass, u.email into is_break_glass, address from memberships m join users u on u.id = m.user_id
        where m.tenant_id = current_tenant_id() and m.user_id = member;
      if not found or required_provider(is_break_glass, provider) is not null then
        return false;
      end if;
      if is_break_glass and required_provider(false, provider) is not null then
        insert into audit_events (action, actor_id, target_id) values ('session.break_glass', member, member);
        perform queue_agency_notice('break_glass_used', jsonb_build_object('person', address), '{owner}');
      end if;
      return true;
    end $body$;
    revoke all on function admit(uuid, uuid) from public;
    grant execute on function admit(uuid, uuid) to aggios_app;

    -- Opens a session without a provider.
    create function open_session(member uuid, life interval, token_life interval, authenticated timestamptz, factor_used timestamptz)
      returns uuid
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    begin
      if not admit(member, null) then
        return null;
      end if;
      return start_session(member, life, token_life, authenticated, factor_used);
    end $body$;
    revoke all on function open_session(uuid, interval, interval, timestamptz, timestamptz) from public;
    grant execute on function open_session(uuid, interval, interval, timestamptz, timestamptz) to aggios_app;

    -- As in 0019, but somebody who has to come in through another provider gets null.
    create or replace function open_session(member uuid, life interval, token_life interval, authenticated timestamptz,
        factor_used timestamptz, provider uuid) returns uuid
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    declare
      opened uuid;
    begin
      if provider is null then
        return open_session(member, life, token_life, authenticated, factor_used);
      end if;
      perform from identity_providers p where p.tenant_id = current_tenant_id() and p.id = provider for share;
      if not found or not admit(member, provider) then
        return null;
      end if;
      opened := start_session(member, life, token_life, null, factor_used);
      update sessions s set provider_id = provider, provider_at = coalesce(authenticated, now()), authenticated_at = '-infinity'
        where s.tenant_id = current_tenant_id() and s.id = opened;
      return opened;
    end $body$;

    -- The version before renews every session. This version has refused earlier.
    create function refuse_renewal() returns trigger
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    begin
      if exists (
        select from memberships m where m.tenant_id = new.tenant_id and m.user_id = new.user_id
          and required_provider(m.break_glass, new.provider_id) is not null
      ) then
        raise exception 'the agency demands its own provider' using errcode = 'AG003';
      end if;
      return new;
    end $body$;
    revoke all on function refuse_renewal() from public;
    create trigger refuse_renewal before update of counter on sessions for each row execute function refuse_renewal();

    -- == break-glass owners ===========================================================================================

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- The break-glass owners of the agency in app.tenant_id. A ready one can come in: they have a password and a second factor.
    -- The rows are locked until the transaction ends, so that of two changes that would leave none the second is refused.
    create function break_glass_owners() returns table (user_id uuid, ready boolean)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    #variable_conflict use_column
    begin
      perform from memberships m where m.tenant_id = current_tenant_id() and m.break_glass order by m.user_id for no key update;
      return query select m.user_id,
          u.password_hash is not null and u.mfa_enabled_at is not null and u.disabled_at is null
        from memberships m join users u on u.id = m.user_id
        where m.tenant_id = current_tenant_id() and m.break_glass order by m.user_id;
    end $body$;

    -- Refuses a change after which an agency that demands its provider has no break-glass owner who can come in. Nobody but
    -- the two triggers below calls it, with their rights. An agency that is suspended keeps one too, because it may be resumed;
    -- one that is to be purged does not.
    create function require_break_glass_owner(agency uuid, without uuid) returns void
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    begin
      perform from memberships m where m.tenant_id = agency and m.break_glass order by m.user_id for no key update;
      if exists (
        select from identity_providers p join tenants t on t.id = p.tenant_id
        where p.tenant_id = agency and p.enforced_from is not null and t.purge_at is null
      ) and not exists (
        select from memberships m join users u on u.id = m.user_id
        where m.tenant_id = agency and m.break_glass and m.user_id <> without
          and u.password_hash is not null and u.mfa_enabled_at is not null and u.disabled_at is null
      ) then
        raise exception 'the last break-glass owner' using errcode = 'AG001';
      end if;
    end $body$;

    -- Somebody who is no owner any more is no break-glass owner either.
    create function keep_break_glass_owner() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      if tg_op = 'UPDATE' then
        new.break_glass := new.break_glass and new.role = 'owner';
        if old.break_glass and not new.break_glass then
          perform require_break_glass_owner(old.tenant_id, old.user_id);
        end if;
        return new;
      end if;
      perform require_break_glass_owner(old.tenant_id, old.user_id);
      return old;
    end $body$;

    -- An operator, who acts for no agency, may remove a factor all the same.
    create function keep_break_glass_factor() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      agency uuid;
    begin
      if current_tenant_id() is not null then
        for agency in select m.tenant_id from memberships m where m.user_id = old.id and m.break_glass order by m.tenant_id loop
          perform require_break_glass_owner(agency, old.id);
        end loop;
      end if;
      return new;
    end $body$;

    -- A provider goes when nobody has to come in through it, or with its agency.
    create function keep_enforced_provider() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      if exists (select from tenants t where t.id = old.tenant_id and t.purge_at is null) then
        raise exception 'the provider is enforced' using errcode = 'AG002';
      end if;
      return old;
    end $body$;

    revoke all on function break_glass_owners(), require_break_glass_owner(uuid, uuid), keep_break_glass_owner(),
      keep_break_glass_factor(), keep_enforced_provider() from public;
    grant execute on function break_glass_owners() to aggios_app;
    -- a trigger is made by the owner of its table
    grant execute on function keep_break_glass_owner(), keep_break_glass_factor(), keep_enforced_provider() to aggios_owner;
    reset role;
    revoke create on schema public from aggios_directory;

    create trigger keep_break_glass_owner before update of role, break_glass on memberships
      for each row when (old.break_glass or new.break_glass) execute function keep_break_glass_owner();
    create trigger keep_break_glass_owner_there before delete on memberships
      for each row when (old.break_glass) execute function keep_break_glass_owner();
    create trigger keep_break_glass_factor before update of mfa_enabled_at on users
      for each row when (old.mfa_enabled_at is not null and new.mfa_enabled_at is null) execute function keep_break_glass_factor();
    create trigger keep_enforced_provider before delete on identity_providers
      for each row when (old.enforced_from is not null) execute function keep_enforced_provider();
  `.execute(db)
}

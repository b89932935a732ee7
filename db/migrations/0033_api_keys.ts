import { type Kysely, sql } from 'kysely'

/**
 * API keys: a way in for programs, which belongs to an agency and not to a person.
 *
 * A key is an actor of its own. Its id stands where the id of a person stands: in `app.user_id`, and so in the audit log, in
 * `invited_by`, and in `created_by` of files. No person has that id, so a key can neither read nor change an account.
 *
 * A key ends with the right of its author to make one. Triggers see to that, whichever way the right is lost: otherwise a former
 * admin would keep a way in. A key that has ended has no row.
 *
 * The version before knows no keys, and ends them too, because the triggers do.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- The secret is random, so its SHA-256 is enough: nothing can be guessed from it.
    -- sid: names what was issued for the secret, as the id of a session does, and is revoked by the change feed as one.
    -- previous_*: the secret before the last rotation, which is good until previous_until. previous_by: who was shown it.
    -- cidrs: where the key may be used from; none: from everywhere.
    create table api_keys (
      tenant_id      uuid not null default current_tenant_id() references tenants,
      id             uuid not null,
      name           text not null,
      role           text not null check (role in ('admin', 'member', 'viewer')),
      permissions    text[] not null,
      cidrs          cidr[] not null,
      secret_hash    bytea not null,
      sid            uuid not null default gen_random_uuid(),
      previous_hash  bytea,
      previous_sid   uuid,
      previous_until timestamptz,
      previous_by    uuid,
      created_by     uuid not null default current_user_id(),
      created_at     timestamptz not null default now(),
      expires_at     timestamptz,
      last_used_at   timestamptz,
      primary key (tenant_id, id),
      check ((previous_hash is null) = (previous_sid is null) and (previous_hash is null) = (previous_until is null)
        and (previous_hash is null) = (previous_by is null))
    );
    create index api_keys_author on api_keys (created_by);
    create index api_keys_previous on api_keys (previous_by) where previous_by is not null;
    alter table api_keys enable row level security;
    alter table api_keys force row level security;
    create policy tenant_isolation on api_keys
      using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()));
    create policy directory on api_keys to aggios_directory using (true);
    grant select, insert (id, name, role, permissions, cidrs, secret_hash, expires_at),
      update (secret_hash, sid, previous_hash, previous_sid, previous_until, previous_by, created_by), delete on api_keys to aggios_app;
    grant select (tenant_id, id, name, sid, previous_sid, previous_by, created_by, last_used_at), delete,
      update (last_used_at, previous_hash, previous_sid, previous_until, previous_by) on api_keys to aggios_directory;

    -- Who is responsible for what the gate's user does: the author of a key.
    create function responsible_person() returns uuid
      language sql stable
      return coalesce(
        (select k.created_by from api_keys k where k.tenant_id = (select current_tenant_id()) and k.id = (select current_user_id())),
        current_user_id());

    -- == what a key leaves behind ======================================================================================

    -- Replies that were stored for a key go within a day, and with the agency. Those of a person go with the membership.
    alter table idempotency_keys drop constraint idempotency_keys_tenant_id_user_id_fkey;

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- Ends the keys of an author, in one agency or in all of them, and the older secrets that the author was shown of keys that
    -- another one has rotated. The entries for processes live longer than a process remembers
    -- a key, and than a token that a key has got: both 15 minutes.
    create function end_keys(author uuid, agency uuid) returns void
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    begin
      perform from api_keys k where author in (k.created_by, k.previous_by) and (agency is null or k.tenant_id = agency)
        order by k.tenant_id, k.id for update;
      with ended as (
        delete from api_keys k where k.created_by = author and (agency is null or k.tenant_id = agency)
        returning k.tenant_id, k.id, k.name, k.sid, k.previous_sid
      ), older as materialized (
        select k.tenant_id, k.id, k.previous_sid from api_keys k
        where k.previous_by = author and k.created_by <> author and (agency is null or k.tenant_id = agency)
      ), shortened as (
        update api_keys k set previous_hash = null, previous_sid = null, previous_until = null, previous_by = null
        from older o where k.tenant_id = o.tenant_id and k.id = o.id
      ), revoked as (
        insert into changes (tenant_id, kind, subject, expires_at)
        select e.tenant_id, 'session', s.sid, now() + interval '20 minutes'
        from ended e cross join lateral (values (e.sid), (e.previous_sid)) s (sid) where s.sid is not null
        union all
        select o.tenant_id, 'session', o.previous_sid, now() + interval '20 minutes' from older o
      )
      insert into audit_events (tenant_id, action, target_id, detail)
      select e.tenant_id, 'api_key.ended', e.id, jsonb_build_object('before', jsonb_build_object('name', e.name), 'reason', 'author')
      from ended e;
    end $body$;

    create function end_keys_of_member() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      perform end_keys(old.user_id, old.tenant_id);
      if tg_op = 'DELETE' then
        delete from idempotency_keys i where i.tenant_id = old.tenant_id and i.user_id = old.user_id;
      end if;
      return null;
    end $body$;

    create function end_keys_of_disabled() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      perform end_keys(old.id, null);
      return null;
    end $body$;

    create function forget_tenant_keys() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from api_keys k where k.tenant_id = old.id;
      delete from idempotency_keys i where i.tenant_id = old.id;
      return old;
    end $body$;

    -- Writes when keys were last used. Whoever meets a key that another process is writing leaves it to that process.
    create function note_key_uses(tenants uuid[], keys uuid[], used timestamptz[]) returns bigint
      language sql volatile security definer
    begin atomic
      with used as materialized (
        select k.tenant_id, k.id, u.at
        from unnest(note_key_uses.tenants, note_key_uses.keys, note_key_uses.used) u (tenant_id, id, at)
        join api_keys k on k.tenant_id = u.tenant_id and k.id = u.id
        where k.last_used_at is null or k.last_used_at < u.at
        for no key update of k skip locked
      ), noted as (
        update api_keys k set last_used_at = u.at from used u where k.tenant_id = u.tenant_id and k.id = u.id returning 1
      )
      select count(*) from noted;
    end;

    -- As in 0017, and the mails that a key causes count for its author.
    do $$
    begin
      execute replace(
        pg_get_functiondef('mail_allowance(text, integer, interval, integer, interval, integer, interval)'::regprocedure),
        'me uuid := current_user_id();', 'me uuid := responsible_person();');
    end $$;

    revoke all on function end_keys(uuid, uuid), end_keys_of_member(), end_keys_of_disabled(), forget_tenant_keys(),
      note_key_uses(uuid[], uuid[], timestamptz[]) from public;
    grant execute on function note_key_uses(uuid[], uuid[], timestamptz[]) to aggios_app;
    -- a trigger is made by the owner of its table
    grant execute on function end_keys_of_member(), end_keys_of_disabled(), forget_tenant_keys() to aggios_owner;
    reset role;
    revoke create on schema public from aggios_directory;

    alter table outbox alter column sender_id set default responsible_person();

    create trigger end_keys_of_demoted after update of role on memberships for each row
      when (new.role not in ('owner', 'admin')) execute function end_keys_of_member();
    create trigger end_keys_of_removed after delete on memberships for each row execute function end_keys_of_member();
    create trigger end_keys_of_disabled after update of disabled_at on users for each row
      when (old.disabled_at is null and new.disabled_at is not null) execute function end_keys_of_disabled();
    create trigger forget_tenant_keys before delete on tenants for each row execute function forget_tenant_keys();
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * Teams: members whose role changes, invitations, and the mail that carries them.
 *
 * An invitation's token is recomputable (an HMAC over tenant, id and generation), so neither it nor a hash of it is stored.
 * The outbox names what a mail is about and holds no text: the worker writes it when it sends.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    grant update (role, version, updated_at), delete on memberships to aggios_app;
    -- by somebody who has just shown that the address is theirs
    grant insert (email_verified_at), update (email_verified_at) on users to aggios_app;

    create table invitations (
      tenant_id   uuid not null default current_tenant_id() references tenants,
      id          uuid not null,
      email       text collate "C" not null check (email = lower(email)),
      role        text not null check (role in ('admin', 'member', 'viewer')),
      invited_by  uuid not null default current_user_id(),
      -- counts the tokens that were mailed; only the newest is good
      generation  integer not null default 1,
      created_at  timestamptz not null default now(),
      expires_at  timestamptz not null default now() + interval '7 days',
      accepted_at timestamptz,
      primary key (tenant_id, id)
    );
    create unique index one_pending_invitation on invitations (tenant_id, email) where accepted_at is null;

    -- A mail that is to be sent, written by the transaction that causes it. The lease keeps two workers off the same one.
    create table outbox (
      tenant_id    uuid not null default current_tenant_id() references tenants,
      id           uuid not null default uuid_v7(),
      kind         text not null check (kind in ('invitation')),
      subject_id   uuid not null,
      generation   integer not null,
      attempts     integer not null default 0,
      due_at       timestamptz not null default now(),
      sent_at      timestamptz,
      -- given up, or no longer wanted when its turn came
      dropped_at   timestamptz,
      last_error   text,
      created_at   timestamptz not null default now(),
      primary key (tenant_id, id),
      unique (tenant_id, kind, subject_id, generation)
    );
    create index outbox_done on outbox (coalesce(sent_at, dropped_at)) where coalesce(sent_at, dropped_at) is not null;
    create index outbox_due on outbox (due_at) where sent_at is null and dropped_at is null;

    do $$
    declare
      name text;
    begin
      foreach name in array array['invitations', 'outbox'] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy tenant_isolation on %I
          using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()))', name);
      end loop;
    end $$;

    grant select, insert (id, email, role), update (role, invited_by, generation, created_at, expires_at, accepted_at), delete
      on invitations to aggios_app;
    grant select, insert (kind, subject_id, generation), update (due_at, sent_at, dropped_at, last_error) on outbox to aggios_app;

    -- The next mails to send, leased to the caller: when it dies, another takes them once the lease is over.
    grant select (tenant_id, id, due_at, sent_at, dropped_at, attempts, created_at), update (attempts, due_at), delete
      on outbox to aggios_directory;
    create policy directory on outbox to aggios_directory using (true);
    create function claim_mail(batch integer, lease interval) returns table (tenant_id uuid, id uuid)
      language sql volatile security definer
    begin atomic
      with due as materialized (
        select o.tenant_id, o.id from outbox o
        where o.due_at <= now() and o.sent_at is null and o.dropped_at is null
        order by o.due_at limit batch
        for no key update skip locked
      )
      update outbox o set attempts = o.attempts + 1, due_at = now() + lease
      from due where o.tenant_id = due.tenant_id and o.id = due.id
      returning o.tenant_id, o.id;
    end;
    -- Removes mails that were sent or given up a month ago.
    create function sweep_outbox(batch integer) returns bigint
      language sql volatile security definer
    begin atomic
      with dead as (
        delete from outbox where (tenant_id, id) in (
          select o.tenant_id, o.id from outbox o
          where coalesce(o.sent_at, o.dropped_at) < now() - interval '30 days' limit batch for update skip locked)
        returning 1
      )
      select count(*) from dead;
    end;
    revoke all on function sweep_outbox(integer) from public;
    grant execute on function sweep_outbox(integer) to aggios_app;
    revoke all on function claim_mail(integer, interval) from public;
    grant execute on function claim_mail(integer, interval) to aggios_app;
    grant create on schema public to aggios_directory;
    alter function claim_mail(integer, interval) owner to aggios_directory;
    alter function sweep_outbox(integer) owner to aggios_directory;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

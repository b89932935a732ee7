import { type Kysely, sql } from 'kysely'

/**
 * Events: the changes of an agency, in an order that every reader sees alike.
 *
 * An event is a row of the audit log that tells of a change. A trigger writes its row of `events` in the transaction of the change,
 * whoever makes it. The row gets its position later, from one process at a time (`place_events`, 0032): a transaction that began early and
 * commits late gets a late position. So a reader who asks for what comes after a position misses nothing, and no order of transaction
 * ids is needed.
 *
 * The version before writes events too, by the trigger, and places none.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- position: microseconds since 1970 at which the event got it, or one more than the newest position, whichever is later.
    -- id and created_at are those of the row in audit_events. The row stays for thirty days, also of an agency that is gone: it holds
    -- ids only.
    create table events (
      tenant_id  uuid not null,
      id         uuid not null,
      created_at timestamptz not null,
      position   bigint,
      primary key (tenant_id, id)
    );
    -- without the events that have no position, so that the transaction of a change writes to two indexes only
    create index events_of_tenant on events (tenant_id, position) where position is not null;
    create index events_placed on events (position) where position is not null;
    create index events_unplaced on events (created_at) where position is null;

    -- One row. position: that of the newest event that has one. Whoever places events holds its lock until the commit.
    create table event_horizon (
      one_row  boolean primary key default true check (one_row),
      position bigint not null default 0
    );
    insert into event_horizon default values;

    do $$
    declare
      name text;
    begin
      foreach name in array array['events', 'event_horizon'] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy directory on %I to aggios_directory using (true)', name);
      end loop;
    end $$;
    create policy tenant_isolation on events
      using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()));
    grant select on events to aggios_app;
    grant select, insert (tenant_id, id, created_at), update (position), delete on events to aggios_directory;
    grant select, update on event_horizon to aggios_directory;

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    create function note_event() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      insert into events (tenant_id, id, created_at) values (new.tenant_id, new.id, new.created_at);
      return null;
    end $body$;

    -- The agencies that have events after a position, and the newest of each, among the next batch of events.
    create function events_after(reached bigint, batch integer) returns table (tenant_id uuid, newest bigint)
      language sql stable security definer
    begin atomic
      select e.tenant_id, max(e.position) from (
        select n.tenant_id, n.position from events n where n.position > reached order by n.position limit batch
      ) e group by e.tenant_id;
    end;

    create function newest_event() returns bigint
      language sql stable security definer
    begin atomic
      select h.position from event_horizon h;
    end;

    -- Events are removed in the order of their positions, which is nearly that of their time.
    create function sweep_events(batch integer) returns bigint
      language sql volatile security definer
    begin atomic
      with dead as (
        delete from events where (tenant_id, id) in (
          select o.tenant_id, o.id from (
            select e.tenant_id, e.id, e.created_at from events e where e.position is not null order by e.position limit batch
          ) o where o.created_at < now() - interval '30 days')
        returning 1
      )
      select count(*) from dead;
    end;

    revoke all on function note_event() from public;
    -- a trigger is made by the owner of its table
    grant execute on function note_event() to aggios_owner;
    do $$
    declare
      signature text;
    begin
      foreach signature in array array['events_after(bigint, integer)', 'newest_event()', 'sweep_events(integer)'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    reset role;
    revoke create on schema public from aggios_directory;

    -- What was refused, tried or only asked for is no change: strangers could cause any number of these.
    create trigger note_event after insert on audit_events for each row
      when (new.action <> all (array['authz.denied', 'session.refused', 'session.challenged', 'session.code_reused',
        'session.refresh_repeated', 'user.passkey_refused', 'user.password_reset_requested']))
      execute function note_event();
  `.execute(db)
}

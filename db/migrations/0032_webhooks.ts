import { type Kysely, sql } from 'kysely'

/**
 * Webhooks: an agency names addresses that its events are sent to.
 *
 * The transaction that gives an event its position also makes a delivery for each enabled endpoint that wants it, so no event
 * is lost between the two. What is leased to a process is the endpoint, and not the delivery: one request at a time is under way
 * to an endpoint, which keeps the order and keeps a slow endpoint from occupying more than that.
 *
 * The version before knows no endpoints. While it runs beside this one, it places events by the function below as well.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- event_types: empty for all types. secret: encrypted by the server, with a key that the database never sees. previous_secret
    -- signs as well until previous_until. deleted_at: the sweep removes the deliveries, then the row.
    -- next_at: when the first delivery that waits is due. It may be too early, and is null only when none waits.
    -- lease: names the process that sends; it ends at busy_until. Without a lease, busy_until ends a pause after a failure.
    -- failures: attempts that failed since the last one that succeeded. failing_since: the time of the first of them.
    -- slow: whether the last attempt took long. Only some of the requests under way may be to such endpoints.
    create table webhook_endpoints (
      tenant_id       uuid not null default current_tenant_id(),
      id              uuid not null,
      url             text not null,
      description     text not null default '',
      event_types     text[] not null default '{}',
      status          text not null default 'enabled' check (status in ('enabled', 'disabled')),
      disabled_reason text check (disabled_reason in ('request', 'failing', 'gone')),
      disabled_at     timestamptz,
      secret          bytea not null,
      key_id          text not null,
      previous_secret bytea,
      previous_key_id text,
      previous_until  timestamptz,
      created_by      uuid default current_user_id(),
      version         integer not null default 1,
      created_at      timestamptz not null default now(),
      updated_at      timestamptz not null default now(),
      deleted_at      timestamptz,
      next_at         timestamptz,
      lease           uuid,
      busy_until      timestamptz not null default '-infinity',
      failures        integer not null default 0,
      failing_since   timestamptz,
      slow            boolean not null default false,
      primary key (tenant_id, id),
      check ((status = 'disabled') = (disabled_reason is not null) and (status = 'disabled') = (disabled_at is not null)),
      check ((previous_secret is null) = (previous_key_id is null) and (previous_secret is null) = (previous_until is null))
    );
    create index webhook_endpoints_due on webhook_endpoints (next_at) where status = 'enabled' and deleted_at is null;
    create index webhook_endpoints_leased on webhook_endpoints (tenant_id) where lease is not null;
    create index webhook_endpoints_deleted on webhook_endpoints (deleted_at) where deleted_at is not null;
    create index webhook_endpoints_key on webhook_endpoints (key_id) where deleted_at is null;
    create index webhook_endpoints_previous on webhook_endpoints (previous_until) where previous_secret is not null;

    -- event_id is sent as the id of the message: an event has the same one in each delivery. event_at is created_at of its row in
    -- audit_events. position is null in a test, which is about no event. wakes: next_at of the endpoint is still to be set for it.
    create table webhook_deliveries (
      tenant_id   uuid not null default current_tenant_id(),
      id          uuid not null default uuid_v7(),
      endpoint_id uuid not null,
      cause       text not null check (cause in ('event', 'replay', 'test')),
      event_id    uuid not null,
      event_type  text not null,
      event_at    timestamptz not null,
      position    bigint,
      status      text not null default 'waiting' check (status in ('waiting', 'delivered', 'failed')),
      attempts    integer not null default 0,
      due_at      timestamptz not null default now(),
      created_at  timestamptz not null default now(),
      finished_at timestamptz,
      wakes       boolean not null default false,
      primary key (tenant_id, id),
      check ((status = 'waiting') = (finished_at is null)),
      check ((cause = 'test') = (position is null))
    );
    create index webhook_deliveries_waiting on webhook_deliveries (tenant_id, endpoint_id, due_at, position, id)
      where status = 'waiting';
    create index webhook_deliveries_of_endpoint on webhook_deliveries (tenant_id, endpoint_id, id);
    create index webhook_deliveries_created on webhook_deliveries (created_at);
    create index webhook_deliveries_wakes on webhook_deliveries (tenant_id, endpoint_id) where wakes;

    -- What came of a request. status: of the reply. reply: the beginning of its body. error: why there is no good reply.
    create table webhook_attempts (
      tenant_id   uuid not null default current_tenant_id(),
      delivery_id uuid not null,
      number      integer not null,
      started_at  timestamptz not null,
      duration_ms integer not null,
      status      integer,
      error       text,
      reply       text,
      primary key (tenant_id, delivery_id, number)
    );

    do $$
    declare
      name text;
    begin
      foreach name in array array['webhook_endpoints', 'webhook_deliveries', 'webhook_attempts'] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy tenant_isolation on %I
          using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()))', name);
        execute format('create policy directory on %I to aggios_directory using (true)', name);
        execute format('grant select on %I to aggios_app', name);
        execute format('grant select, delete on %I to aggios_directory', name);
      end loop;
    end $$;
    grant insert (id, url, description, event_types, secret, key_id),
      update (url, description, event_types, status, disabled_reason, disabled_at, secret, key_id, previous_secret, previous_key_id,
        previous_until, version, updated_at, deleted_at, next_at, lease, busy_until, failures, failing_since, slow)
      on webhook_endpoints to aggios_app;
    grant update (secret, key_id, previous_secret, previous_key_id, previous_until, deleted_at, next_at, lease, busy_until)
      on webhook_endpoints to aggios_directory;
    grant insert (id, endpoint_id, cause, event_id, event_type, event_at, position), update (status, due_at, finished_at)
      on webhook_deliveries to aggios_app;
    grant insert (tenant_id, endpoint_id, cause, event_id, event_type, event_at, position, due_at, wakes), update (attempts, wakes)
      on webhook_deliveries to aggios_directory;
    grant insert (delivery_id, number, started_at, duration_ms, status, error, reply) on webhook_attempts to aggios_app;

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- Gives positions to events that have none, makes their deliveries, and returns the agencies of these events. Returns nothing
    -- while another process does this. Looks before it locks, so that it writes nothing when there is nothing to do. Deliveries
    -- are due in the order of the positions: the time is read with the lock held. Rows of endpoints are only read: their agencies
    -- can lock them, and the events of all others would wait.
    create function place_events(batch integer) returns table (tenant_id uuid, placed integer, newest bigint)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    #variable_conflict use_column
    declare
      reached bigint;
      moment timestamptz;
    begin
      if not exists (select from events e where e.position is null) then
        return;
      end if;
      select h.position into reached from event_horizon h for update skip locked;
      if not found then
        return;
      end if;
      -- from the clock, because the gaps of a count would tell an agency how much happens in others
      reached := greatest(reached, (extract(epoch from clock_timestamp()) * 1000000)::bigint);
      moment := clock_timestamp();
      return query
        with unplaced as (
          select e.tenant_id, e.id, e.created_at from events e where e.position is null order by e.created_at, e.id limit batch
        ), numbered as (
          select u.tenant_id, u.id, reached + row_number() over (order by u.created_at, u.id) as position from unplaced u
        ), placed as (
          update events e set position = n.position from numbered n where e.tenant_id = n.tenant_id and e.id = n.id
          returning e.tenant_id, e.id, e.created_at, e.position
        ), moved as (
          update event_horizon h set position = (select max(p.position) from placed p) where exists (select from placed)
        ), made as (
          insert into webhook_deliveries (tenant_id, endpoint_id, cause, event_id, event_type, event_at, position, due_at, wakes)
          select w.tenant_id, w.id, 'event', a.id, a.action, a.created_at, p.position, moment,
            row_number() over (partition by w.tenant_id, w.id order by p.position) = 1
          from placed p
          join webhook_endpoints w on w.tenant_id = p.tenant_id and w.status = 'enabled' and w.deleted_at is null
          join audit_events a on a.tenant_id = p.tenant_id and a.created_at = p.created_at and a.id = p.id
          where cardinality(w.event_types) = 0 or a.action = any (w.event_types)
        )
        select p.tenant_id, count(*)::integer, max(p.position) from placed p group by p.tenant_id;
    end $body$;

    -- Sets next_at of endpoints for which deliveries were made. One that is locked keeps its mark, for the next call.
    create function wake_webhooks() returns void
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    begin
      if not exists (select from webhook_deliveries d where d.wakes) then
        return;
      end if;
      with fresh as materialized (
        select d.tenant_id, d.id, d.endpoint_id from webhook_deliveries d where d.wakes limit 1000 for no key update skip locked
      ), free as materialized (
        select w.tenant_id, w.id from webhook_endpoints w
        where exists (select from fresh f where f.tenant_id = w.tenant_id and f.endpoint_id = w.id)
        for no key update of w skip locked
      ), woken as (
        update webhook_endpoints w set next_at = least(w.next_at, now()) from free f
        where w.tenant_id = f.tenant_id and w.id = f.id
      )
      update webhook_deliveries d set wakes = false from fresh f
      where d.tenant_id = f.tenant_id and d.id = f.id and (
        exists (select from free w where w.tenant_id = f.tenant_id and w.id = f.endpoint_id)
        or not exists (select from webhook_endpoints w where w.tenant_id = f.tenant_id and w.id = f.endpoint_id));
    end $body$;

    -- The next deliveries, each with the lease of its endpoint. Agencies take turns: the one with the fewest requests under way
    -- comes first, and none gets more than "most" places, nor all slow endpoints together more than "most_slow". The endpoint is
    -- locked before its deliveries are read, so that what another process has just settled is seen.
    create function claim_webhook_deliveries(batch integer, most integer, most_slow integer, lease_time interval)
      returns table (tenant_id uuid, delivery_id uuid, lease uuid, slow boolean)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    #variable_conflict use_column
    declare
      endpoint record;
      first_due timestamptz;
    begin
      perform wake_webhooks();
      for endpoint in
        select w.tenant_id, w.id, w.slow
        from (
          select c.tenant_id, c.id, c.turn, c.next_at, c.slow,
            row_number() over (partition by c.slow order by c.turn, c.next_at) as place
          from (
            select e.tenant_id, e.id, e.next_at, e.slow,
              row_number() over (partition by e.tenant_id order by e.next_at, e.id) + (
                select count(*) from webhook_endpoints b
                where b.tenant_id = e.tenant_id and b.lease is not null and b.busy_until > now()) as turn
            from webhook_endpoints e join tenants t on t.id = e.tenant_id
            where e.next_at <= now() and e.status = 'enabled' and e.deleted_at is null and e.busy_until <= now()
              and t.status = 'active'
          ) c
          where c.turn <= most
        ) o
        join webhook_endpoints w on w.tenant_id = o.tenant_id and w.id = o.id
        where w.next_at <= now() and w.status = 'enabled' and w.deleted_at is null and w.busy_until <= now()
          and (not o.slow or o.place <= most_slow)
        order by o.turn, o.next_at limit batch
        for no key update of w skip locked
      loop
        delivery_id := null;
        first_due := null;
        select d.id, d.due_at into delivery_id, first_due from webhook_deliveries d
          where d.tenant_id = endpoint.tenant_id and d.endpoint_id = endpoint.id and d.status = 'waiting'
          order by d.due_at, d.position, d.id limit 1;
        if first_due is null or first_due > clock_timestamp() then
          update webhook_endpoints w set next_at = first_due where w.tenant_id = endpoint.tenant_id and w.id = endpoint.id;
          continue;
        end if;
        tenant_id := endpoint.tenant_id;
        slow := endpoint.slow;
        lease := gen_random_uuid();
        update webhook_deliveries d set attempts = d.attempts + 1 where d.tenant_id = endpoint.tenant_id and d.id = delivery_id;
        update webhook_endpoints w set lease = claim_webhook_deliveries.lease, busy_until = clock_timestamp() + lease_time
          where w.tenant_id = endpoint.tenant_id and w.id = endpoint.id;
        return next;
      end loop;
    end $body$;

    -- The keys that stored secrets of webhooks need: as provider_keys_in_use.
    create function webhook_keys_in_use() returns setof text
      language sql stable security definer
    begin atomic
      with recursive key (id) as (
        select min(key_id) from webhook_endpoints where deleted_at is null
        union all
        select (select min(w.key_id) from webhook_endpoints w where w.deleted_at is null and w.key_id > key.id)
        from key where key.id is not null
      )
      select id from key where id is not null
      union
      select previous_key_id from webhook_endpoints where previous_until > now() and deleted_at is null;
    end;

    -- Counts to 100,000, so that a large backlog can be read too. "due_since" leaves out endpoints that are sent to or that pause after a failure: their owner is late, not the sender.
    create function webhook_backlog() returns table (waiting bigint, due_since timestamptz)
      language sql stable security definer rows 1
    begin atomic
      select (select count(*) from (select from webhook_deliveries d
          join webhook_endpoints w on w.tenant_id = d.tenant_id and w.id = d.endpoint_id
          where d.status = 'waiting' and w.status = 'enabled' and w.deleted_at is null limit 100000) counted),
        (select min(greatest(w.next_at, w.busy_until)) from webhook_endpoints w join tenants t on t.id = w.tenant_id
          where w.next_at <= now() and w.busy_until <= now() and w.status = 'enabled' and w.deleted_at is null
            and t.status = 'active');
    end;

    -- Removes deliveries after thirty days, and those of endpoints that are gone; forgets secrets that sign no more.
    create function sweep_webhooks(batch integer) returns bigint
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      endpoint record;
      removed bigint;
      part bigint;
    begin
      -- a row that its agency holds locked is left for the next run
      with past as materialized (
        select w.tenant_id, w.id from webhook_endpoints w where w.previous_secret is not null and w.previous_until < now()
        for no key update skip locked
      )
      update webhook_endpoints w set previous_secret = null, previous_key_id = null, previous_until = null
        from past o where w.tenant_id = o.tenant_id and w.id = o.id;
      with dead as (
        delete from webhook_deliveries where (tenant_id, id) in (
          select o.tenant_id, o.id from webhook_deliveries o where o.created_at < now() - interval '30 days'
          order by o.created_at limit batch for update skip locked)
        returning tenant_id, id
      ), attempts as (
        delete from webhook_attempts a using dead where a.tenant_id = dead.tenant_id and a.delivery_id = dead.id
      )
      select count(*) into removed from dead;
      for endpoint in
        select w.tenant_id, w.id from webhook_endpoints w where w.deleted_at is not null
        order by w.deleted_at for update skip locked
      loop
        exit when removed >= batch;
        with dead as (
          delete from webhook_deliveries where (tenant_id, id) in (
            select o.tenant_id, o.id from webhook_deliveries o
            where o.tenant_id = endpoint.tenant_id and o.endpoint_id = endpoint.id limit batch for update skip locked)
          returning tenant_id, id
        ), attempts as (
          delete from webhook_attempts a using dead where a.tenant_id = dead.tenant_id and a.delivery_id = dead.id
        )
        select count(*) into part from dead;
        removed := removed + part;
        if part < batch then
          delete from webhook_endpoints w where w.tenant_id = endpoint.tenant_id and w.id = endpoint.id
            and not exists (select from webhook_deliveries d where d.tenant_id = w.tenant_id and d.endpoint_id = w.id);
        end if;
      end loop;
      return removed;
    end $body$;

    -- The endpoints of an agency that is purged. The sweep removes their deliveries, of which there may be many.
    create function forget_webhooks() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      update webhook_endpoints w set deleted_at = now(), secret = '', key_id = '', previous_secret = null, previous_key_id = null,
        previous_until = null where w.tenant_id = old.id;
      return old;
    end $body$;

    -- As in 0029, and a notice of webhooks.
    create or replace function is_from_agency(kind text) returns boolean
      language sql immutable parallel safe
      return is_agency_news(kind) or kind in ('break_glass_used', 'domain_lost', 'webhook_disabled');

    revoke all on function forget_webhooks(), wake_webhooks() from public;
    -- a trigger is made by the owner of its table
    grant execute on function forget_webhooks() to aggios_owner;
    do $$
    declare
      signature text;
    begin
      foreach signature in array array['place_events(integer)', 'claim_webhook_deliveries(integer, integer, integer, interval)',
        'webhook_keys_in_use()', 'webhook_backlog()', 'sweep_webhooks(integer)'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    reset role;
    revoke create on schema public from aggios_directory;

    create trigger forget_webhooks before delete on tenants for each row execute function forget_webhooks();
  `.execute(db)
}

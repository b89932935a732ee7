import { type Kysely, sql } from 'kysely'

/**
 * Seals over the audit log: what was written, row by row, in segments that are chained per tenant.
 *
 * Writers know nothing of it, so they stay parallel. A minute later, when no transaction that could still add a row to a
 * segment is alive (they are cut off far earlier), its rows are hashed and the hashes chained to the segment before. A row that
 * is changed, removed or slipped in afterwards no longer fits its seal. The chain's head is logged, which anchors it outside
 * of the database.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    create index audit_events_created on audit_events (created_at);
    create index audit_events_action on audit_events (tenant_id, action, created_at, id);
    create index audit_events_actor on audit_events (tenant_id, actor_id, created_at, id);

    create table audit_seals (
      tenant_id  uuid not null default current_tenant_id(),
      -- numbers the tenant's segments without gaps
      seq        integer not null,
      -- after this, up to and including that
      from_at    timestamptz not null,
      to_at      timestamptz not null,
      ids        uuid[] not null,
      hashes     bytea[] not null check (cardinality(hashes) = cardinality(ids)),
      -- over the digest before and all hashes
      digest     bytea not null,
      created_at timestamptz not null default now(),
      primary key (tenant_id, seq)
    );
    alter table audit_seals enable row level security;
    alter table audit_seals force row level security;
    create policy tenant_isolation on audit_seals
      using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()));
    grant select on audit_seals to aggios_app;

    -- Up to where all tenants are sealed, and from where on events are kept.
    create table audit_horizon (
      one        boolean primary key default true check (one),
      sealed_to  timestamptz not null,
      -- before this events were dropped on purpose
      dropped_to timestamptz not null default '-infinity'
    );
    insert into audit_horizon (sealed_to) values ('-infinity');
    alter table audit_horizon enable row level security;
    alter table audit_horizon force row level security;

    -- Every column, in one spelling, whatever the session's settings are.
    create function audit_hash(e audit_events) returns bytea
      language sql stable
      return sha256(convert_to(jsonb_build_array(
        extract(epoch from (e).created_at), (e).id, (e).tenant_id, (e).action, (e).actor_id, (e).target_id, (e).session_id,
        host((e).ip), (e).user_agent, (e).request_id, (e).detail)::text, 'UTF8'));

    grant select on audit_events to aggios_directory;
    grant select, insert (tenant_id, seq, from_at, to_at, ids, hashes, digest) on audit_seals to aggios_directory;
    grant select, update on audit_horizon to aggios_directory;
    create policy directory_read on audit_events for select to aggios_directory using (true);
    create policy directory on audit_seals to aggios_directory using (true);
    create policy directory on audit_horizon to aggios_directory using (true);
    create policy dropping on audit_horizon to aggios_owner using (true);

    -- Seals the next ten minutes that are older than "age" and not sealed yet, and says the new head of each tenant's chain.
    -- Called until it says nothing. One works at a time; who comes meanwhile seals nothing.
    create function seal_audit(age interval) returns table (tenant_id uuid, seq integer, events integer, digest bytea)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      low timestamptz;
      high timestamptz := clock_timestamp() - age;
      first timestamptz;
      enough timestamptz;
    begin
      if age not between interval '0' and interval '1 hour' then
        raise 'seal_audit: an age of % is out of bounds', age;
      end if;
      select h.sealed_to into low from audit_horizon h for update skip locked;
      if low is null or low >= high then
        return;
      end if;
      select min(e.created_at) into first from audit_events e where e.created_at > low and e.created_at <= high;
      high := least(high, first + interval '10 minutes');
      -- as many as one statement has time for
      select e.created_at into enough from audit_events e
      where e.created_at > low and e.created_at <= high order by e.created_at offset 50000 limit 1;
      high := least(high, enough);
      return query
        with fresh as (
          select e.tenant_id, array_agg(e.id order by e.created_at, e.id) as ids,
            array_agg(audit_hash(e) order by e.created_at, e.id) as hashes
          from audit_events e where e.created_at > low and e.created_at <= high
          group by e.tenant_id
        ), chained as (
          select f.*, coalesce(last.seq, 0) + 1 as seq,
            sha256(coalesce(last.digest, '') || (select string_agg(h, '' order by place) from unnest(f.hashes) with ordinality k (h, place))) as digest
          from fresh f left join lateral (
            select s.seq, s.digest from audit_seals s where s.tenant_id = f.tenant_id order by s.seq desc limit 1
          ) last on true
        )
        insert into audit_seals as s (tenant_id, seq, from_at, to_at, ids, hashes, digest)
        select c.tenant_id, c.seq, low, high, c.ids, c.hashes, c.digest from chained c
        returning s.tenant_id, s.seq, cardinality(s.ids), s.digest;
      update audit_horizon set sealed_to = high;
    end $body$;

    -- Drops the months that are wholly older than "keep". Owned by the owner because it drops tables.
    create function drop_audit_partitions(keep interval) returns integer
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      partition record;
      dropped integer := 0;
    begin
      if keep < interval '28 days' then
        raise 'drop_audit_partitions: % is too short to keep anything', keep;
      end if;
      for partition in
        select c.relname as name, to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' as ends
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'audit_events'::regclass
      loop
        if partition.ends < (now() at time zone 'utc') - keep then
          execute format('drop table %I', partition.name);
          update audit_horizon set dropped_to = greatest(dropped_to, partition.ends at time zone 'utc');
          dropped := dropped + 1;
        end if;
      end loop;
      return dropped;
    end $body$;
    revoke all on function drop_audit_partitions(interval) from public;
    grant execute on function drop_audit_partitions(interval) to aggios_app;

    -- Segments that begin before this may lack rows.
    create function audit_kept_from() returns timestamptz
      language sql stable security definer
    begin atomic
      select dropped_to from audit_horizon;
    end;
    revoke all on function audit_kept_from() from public;
    grant execute on function audit_kept_from() to aggios_app;

    revoke all on function seal_audit(interval) from public;
    grant execute on function seal_audit(interval) to aggios_app;
    grant create on schema public to aggios_directory;
    alter function seal_audit(interval) owner to aggios_directory;
    alter function audit_kept_from() owner to aggios_directory;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

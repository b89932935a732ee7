import { type Kysely, sql } from 'kysely'

/**
 * Evidence that neither who serves nor who owns the database can rewrite unnoticed, and an end for what only grew.
 *
 * The head of each agency's chain is signed with a key that the database never sees. What is dropped is what the owner's row says,
 * and each drop is a signed statement: a month that is missing without one was removed by somebody else. Ages are fixed in the
 * functions. Processes of the version before still call `seal_audit` and `drop_audit_partitions`, which do nothing any more: they
 * could not sign what they seal.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- How long events are kept, in days; 0 is for ever. Written with the owner's credentials only.
    create table audit_retention (
      one        boolean primary key default true check (one),
      keep_days  integer not null default 0 check (keep_days = 0 or keep_days between 28 and 36500),
      changed_at timestamptz not null default now()
    );
    insert into audit_retention default values;

    -- Over the bounds of a segment and of all before it, as "digest" is over the events. Null before this step.
    alter table audit_seals add column bounds bytea;
    create index audit_seals_to_at on audit_seals (to_at);

    -- The hash of a ticket that the next to seal must show. Only who has the key can make tickets, so nobody else can put a segment
    -- into a chain that no signature would ever cover. Null until the first one.
    alter table audit_horizon add column ticket_number bigint not null default 0, add column ticket_hash bytea;

    -- Of the heads of chains. More than one for a segment: a signature is added and never replaced, so nobody can spoil one.
    create table audit_signatures (
      tenant_id uuid not null default current_tenant_id(),
      seq       integer not null,
      key_id    text not null check (length(key_id) between 1 and 64),
      signature bytea not null check (length(signature) = 32),
      made_at   timestamptz not null default now(),
      primary key (tenant_id, seq, key_id, signature)
    );

    -- What the product states about the log as a whole, signed too:
    --   signed_from   every segment that ends later is covered by a signature
    --   dropped_to    events before were dropped because the owner keeps them for keep_days
    create table audit_statements (
      kind      text not null check (kind in ('signed_from', 'dropped_to')),
      at        timestamptz not null,
      keep_days integer not null,
      key_id    text not null check (length(key_id) between 1 and 64),
      signature bytea not null check (length(signature) = 32),
      made_at   timestamptz not null default now(),
      primary key (kind, at, key_id, signature)
    );

    do $$
    declare
      name text;
    begin
      foreach name in array array['audit_retention', 'audit_signatures', 'audit_statements'] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
      end loop;
    end $$;
    create policy tenant_isolation on audit_signatures
      using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()));
    grant select on audit_signatures to aggios_app;
    create policy directory on audit_signatures to aggios_directory using (true);
    create policy directory on audit_statements to aggios_directory using (true);
    create policy directory on audit_retention for select to aggios_directory using (true);
    create policy retention on audit_retention to aggios_owner using (true);
    grant select, insert, delete on audit_signatures to aggios_directory;
    grant select, insert on audit_statements to aggios_directory;
    grant select on audit_retention to aggios_directory;
    grant insert (bounds), delete on audit_seals to aggios_directory;

    -- A time with its microseconds, in one spelling whatever the session's settings are.
    create function audit_time(at timestamptz) returns text
      language sql stable
      return case when isfinite(at) then to_char(at at time zone 'utc', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') else at::text end;

    create function audit_bounds(before bytea, from_at timestamptz, to_at timestamptz) returns bytea
      language sql stable
      return sha256(coalesce(before, '') || convert_to(audit_time(from_at) || ' ' || audit_time(to_at), 'UTF8'));

    -- "due_to": months before are over by the owner's row.
    create function audit_state() returns table (sealed_to text, dropped_to text, keep_days integer, due_to text, statements jsonb,
        ticket_number bigint, ticket_hash bytea)
      language sql stable security definer
    begin atomic
      select audit_time(h.sealed_to), audit_time(h.dropped_to), r.keep_days,
        (select audit_time(max(m.ends)) from (
          select (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') at time zone 'utc' as ends
          from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'audit_events'::regclass
        ) m where r.keep_days > 0 and m.ends < now() - make_interval(days => r.keep_days)),
        (select jsonb_agg(jsonb_build_object('kind', s.kind, 'at', audit_time(s.at), 'keep_days', s.keep_days,
          'key_id', s.key_id, 'signature', encode(s.signature, 'hex'))) from audit_statements s),
        h.ticket_number, h.ticket_hash
      from audit_horizon h, audit_retention r;
    end;

    -- Seals the next ten minutes of what is older than a minute, and says the new head of each tenant's chain and the one before
    -- it. Called until it says nothing. One works at a time; a caller that comes meanwhile seals nothing.
    create function seal_audit_events(number bigint, ticket bytea, next_hash bytea) returns table (tenant_id uuid, seq integer, events integer, digest bytea, bounds bytea,
        to_at timestamptz, last_seq integer, last_digest bytea, last_bounds bytea, last_to timestamptz, signatures jsonb)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      low timestamptz;
      wanted bytea;
      -- longer than any transaction that could still write an event may live
      high timestamptz := clock_timestamp() - interval '1 minute';
      first timestamptz;
      enough timestamptz;
    begin
      select h.sealed_to, h.ticket_hash into low, wanted from audit_horizon h where h.ticket_number = number for update skip locked;
      if low is not null and sha256(ticket) <> wanted then
        raise 'seal_audit_events: the ticket is not the one that was announced';
      end if;
      if low is null or low >= high then
        return;
      end if;
      select min(e.created_at) into first from audit_events e where e.created_at > low and e.created_at <= high;
      high := least(high, first + interval '10 minutes');
      -- not before its month: a segment that begins in a month that was dropped is looked at no more
      low := greatest(low, first - interval '1 microsecond');
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
            sha256(coalesce(last.digest, '') || (select string_agg(h, '' order by place) from unnest(f.hashes) with ordinality k (h, place))) as digest,
            audit_bounds(last.bounds, low, high) as bounds,
            last.seq as last_seq, last.digest as last_digest, last.bounds as last_bounds, last.to_at as last_to
          from fresh f left join lateral (
            select s.seq, s.digest, s.bounds, s.to_at from audit_seals s where s.tenant_id = f.tenant_id order by s.seq desc limit 1
          ) last on true
        ), sealed as (
          insert into audit_seals as s (tenant_id, seq, from_at, to_at, ids, hashes, digest, bounds)
          select c.tenant_id, c.seq, low, high, c.ids, c.hashes, c.digest, c.bounds from chained c
          returning s.tenant_id
        )
        select c.tenant_id, c.seq, cardinality(c.ids), c.digest, c.bounds, high, c.last_seq, c.last_digest, c.last_bounds, c.last_to,
          (select jsonb_agg(jsonb_build_object('key_id', g.key_id, 'signature', encode(g.signature, 'hex')))
            from audit_signatures g where g.tenant_id = c.tenant_id and g.seq = c.last_seq)
        from chained c join sealed using (tenant_id);
      update audit_horizon set sealed_to = high, ticket_number = number + 1, ticket_hash = next_hash;
    end $body$;

    create function add_audit_signatures(tenants uuid[], seqs integer[], key_id text, signatures bytea[]) returns bigint
      language sql volatile security definer
    begin atomic
      with added as (
        insert into audit_signatures (tenant_id, seq, key_id, signature)
        select s.tenant_id, s.seq, add_audit_signatures.key_id, n.signature
        from unnest(tenants, seqs, signatures) n (tenant_id, seq, signature)
        join audit_seals s on s.tenant_id = n.tenant_id and s.seq = n.seq
        on conflict do nothing
        returning 1
      )
      select count(*) from added;
    end;

    create function add_audit_statement(kind text, at timestamptz, keep_days integer, key_id text, signature bytea) returns void
      language sql volatile security definer
    begin atomic
      insert into audit_statements (kind, at, keep_days, key_id, signature)
      values (add_audit_statement.kind, add_audit_statement.at, add_audit_statement.keep_days, add_audit_statement.key_id,
        add_audit_statement.signature)
      on conflict do nothing;
    end;

    -- The heads of a page of tenants that have no signature of this key yet: the key is new.
    create function audit_heads_to_sign(key_id text, after uuid, batch integer)
      returns table (tenant_id uuid, seq integer, digest bytea, bounds bytea, to_at timestamptz, signatures jsonb)
      language sql stable security definer
    begin atomic
      select t.id, s.seq, s.digest, s.bounds, s.to_at,
        (select jsonb_agg(jsonb_build_object('key_id', g.key_id, 'signature', encode(g.signature, 'hex')))
          from audit_signatures g where g.tenant_id = t.id and g.seq = s.seq
            and not exists (select from audit_signatures n where n.tenant_id = t.id and n.seq = s.seq
              and n.key_id = audit_heads_to_sign.key_id))
      from (select id from tenants where id > after order by id limit batch) t
      left join lateral (
        select a.seq, a.digest, a.bounds, a.to_at from audit_seals a where a.tenant_id = t.id order by a.seq desc limit 1
      ) s on true
      order by t.id;
    end;

    -- Drops the months that are over by the owner's row. Owned by the owner because it drops tables. One process at a time; and
    -- who reads the log keeps it from its lock for 50 ms and no longer, so that no writer waits behind it.
    create function drop_audit_months() returns table (dropped integer, busy boolean)
      language plpgsql volatile security definer set search_path = public, pg_temp set lock_timeout = '50ms'
    as $body$
    declare
      keep integer;
      partition record;
    begin
      dropped := 0;
      busy := false;
      select r.keep_days into keep from audit_retention r;
      if keep is null or keep < 28 or not pg_try_advisory_xact_lock(hashtext('aggios audit retention')) then
        return next;
        return;
      end if;
      for partition in
        select c.relname as name, (to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month') at time zone 'utc' as ends
        from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'audit_events'::regclass order by 2
      loop
        exit when partition.ends >= now() - make_interval(days => keep);
        begin
          execute format('drop table %I', partition.name);
        exception when lock_not_available then
          busy := true;
          exit;
        end;
        update audit_horizon set dropped_to = greatest(dropped_to, partition.ends);
        dropped := dropped + 1;
      end loop;
      return next;
    end $body$;
    revoke all on function drop_audit_months() from public;
    grant execute on function drop_audit_months() to aggios_app;

    create or replace function drop_audit_partitions(keep interval) returns integer
      language sql volatile security definer set search_path = public, pg_temp
      return 0;

    -- Removes the seals of events that were dropped. The last one of a chain stays as long as its agency is there: the next segment
    -- is chained to it.
    create function prune_audit_seals(batch integer) returns bigint
      language sql volatile security definer
    begin atomic
      with dead as materialized (
        select s.tenant_id, s.seq from audit_seals s, audit_horizon h
        where s.to_at <= h.dropped_to and (
          exists (select from audit_seals n where n.tenant_id = s.tenant_id and n.seq > s.seq and n.to_at <= h.dropped_to)
          or not exists (select from audit_seals n where n.tenant_id = s.tenant_id and n.seq > s.seq)
            and not exists (select from tenants t where t.id = s.tenant_id))
        order by s.to_at limit batch
      ), unsigned as (
        delete from audit_signatures g using dead d where g.tenant_id = d.tenant_id and g.seq = d.seq
      ), pruned as (
        delete from audit_seals s using dead d where s.tenant_id = d.tenant_id and s.seq = d.seq returning 1
      )
      select count(*) from pruned;
    end;

    -- Addresses of people who were invited go thirty days after the invitation was accepted or could be no more.
    create index invitations_end on invitations (coalesce(accepted_at, expires_at));
    grant select (id, accepted_at, expires_at) on invitations to aggios_directory;
    create function sweep_invitations(batch integer) returns bigint
      language sql volatile security definer
    begin atomic
      with dead as (
        delete from invitations where (tenant_id, id) in (
          select i.tenant_id, i.id from invitations i
          where coalesce(i.accepted_at, i.expires_at) < now() - interval '30 days'
          order by coalesce(i.accepted_at, i.expires_at) limit batch)
        returning 1
      )
      select count(*) from dead;
    end;

    grant create on schema public to aggios_directory;
    do $$
    declare
      name text;
    begin
      foreach name in array array['audit_state()', 'seal_audit_events(bigint, bytea, bytea)', 'add_audit_signatures(uuid[], integer[], text, bytea[])',
        'add_audit_statement(text, timestamptz, integer, text, bytea)', 'audit_heads_to_sign(text, uuid, integer)',
        'prune_audit_seals(integer)', 'sweep_invitations(integer)'] loop
        execute format('revoke all on function %s from public', name);
        execute format('grant execute on function %s to aggios_app', name);
        execute format('alter function %s owner to aggios_directory', name);
      end loop;
    end $$;
    set local role aggios_directory;
    create or replace function seal_audit(age interval) returns table (tenant_id uuid, seq integer, events integer, digest bytea)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as 'begin return; end';
    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

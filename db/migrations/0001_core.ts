import { type Kysely, sql } from 'kysely'

/**
 * Tenants, people, memberships, sessions, revocations and the audit log, with the walls between tenants.
 *
 * Three settings, all local to a transaction and all taken from a verified token or from what the server itself created:
 * `app.tenant_id` (whose rows exist), `app.user_id` (which identity may be changed) and `app.request` (who asked, for the
 * audit log). `tenant_id` defaults to the tenant of the transaction, so no insert names it; the policy then checks the
 * default like any other value.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    revoke all on schema public from public;
    grant usage on schema public to aggios_app, aggios_directory;
    -- so that a server without the owner's credentials can see whether the schema is current
    grant select on kysely_migration to aggios_app;

    -- == who is asking ================================================================================================

    -- After a commit a local setting is '', not null; without nullif the cast would raise on every pooled connection.
    create function current_tenant_id() returns uuid
      language sql stable parallel safe
      return nullif(current_setting('app.tenant_id', true), '')::uuid;

    create function current_user_id() returns uuid
      language sql stable parallel safe
      return nullif(current_setting('app.user_id', true), '')::uuid;

    -- {"id", "ip", "user_agent"} of the request that is being served; null in a worker
    create function current_request() returns jsonb
      language sql stable parallel safe
      return nullif(current_setting('app.request', true), '')::jsonb;

    -- uuidv7() arrives with PostgreSQL 18; this one is for rows that are made inside a statement.
    create function uuid_v7() returns uuid
      language sql volatile parallel safe
      return encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid())
        placing substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
        52, 1), 53, 1), 'hex')::uuid;

    -- == tables =======================================================================================================

    -- An agency. Slugs are public (they are host names); everything else is the tenant's own. The version is in the ETag.
    create table tenants (
      id         uuid primary key,
      slug       text collate "C" not null unique check (slug ~ '^[a-z][a-z0-9-]{1,38}[a-z0-9]$'),
      name       text not null,
      status     text not null default 'active' check (status in ('active', 'suspended')),
      plan       text not null default 'free',
      settings   jsonb not null default '{}',
      logo_url   text,
      version    integer not null default 1,
      created_at timestamptz not null default now(),
      updated_at timestamptz not null default now()
    );

    -- One identity, a member of any number of tenants. The e-mail is normalised by the server; the check only refuses what
    -- was forgotten. Plain text under "C": lower(email) and citext are not leakproof, so under row security their indexes
    -- can't be used. password_version changes with each new password and not when the same one is hashed again.
    create table users (
      id                uuid primary key,
      email             text collate "C" not null unique check (email = lower(email)),
      name              text not null,
      avatar_url        text,
      password_hash     text,
      pepper_id         text,
      password_version  integer not null default 1,
      email_verified_at timestamptz,
      disabled_at       timestamptz,
      version           integer not null default 1,
      created_at        timestamptz not null default now(),
      updated_at        timestamptz not null default now(),
      check ((password_hash is null) = (pepper_id is null))
    );
    create index users_pepper on users (pepper_id);

    -- No cascade from users: referential actions skip row security and would reach into other tenants.
    create table memberships (
      tenant_id    uuid not null default current_tenant_id() references tenants,
      user_id      uuid not null references users,
      role         text not null check (role in ('owner', 'admin', 'member', 'viewer')),
      version      integer not null default 1,
      last_used_at timestamptz,
      joined_at    timestamptz not null default now(),
      updated_at   timestamptz not null default now(),
      primary key (tenant_id, user_id)
    );
    create index memberships_user on memberships (user_id);

    -- A family of refresh tokens. The token carries tenant, family and counter under one HMAC, so nothing here is secret and
    -- nobody has to be found before the tenant is known. Rotation touches no indexed column: each update stays on its page.
    -- expires_at is the absolute end; the idle end is rotated_at + REFRESH_TOKEN_TTL.
    create table sessions (
      tenant_id  uuid not null default current_tenant_id(),
      id         uuid not null,
      user_id    uuid not null,
      counter    integer not null default 0,
      rotated_at timestamptz not null default now(),
      expires_at timestamptz not null,
      revoked_at timestamptz,
      user_agent text default current_request() ->> 'user_agent',
      ip         inet default (current_request() ->> 'ip')::inet,
      created_at timestamptz not null default now(),
      primary key (tenant_id, id),
      foreign key (tenant_id, user_id) references memberships on delete cascade
    ) with (fillfactor = 70);
    create index sessions_user on sessions (tenant_id, user_id);
    create index sessions_expiry on sessions (expires_at);

    -- What must no longer be believed: issued access tokens, and what processes remember of a tenant. Append-only, and dead
    -- once the last token it can concern has expired.
    --   kind session: subject = session id            that session is over
    --   kind member:  subject = user id,   state      the role now held; null: no longer a member
    --   kind tenant:  subject = tenant id, state      its status; also written when anything else of the tenant changes
    -- A token is refused when its role is not the state: no clock is compared, so there is no same-second hole.
    -- xid orders the poll (revocations_since); id orders two entries about one subject, because it is drawn after that
    -- subject's row was locked.
    create table revocations (
      tenant_id  uuid not null default current_tenant_id(),
      id         bigint generated always as identity,
      xid        xid8 not null default pg_current_xact_id(),
      kind       text not null check (kind in ('session', 'member', 'tenant')),
      subject    uuid not null,
      state      text,
      expires_at timestamptz not null,
      created_at timestamptz not null default now(),
      primary key (tenant_id, id)
    );
    create index revocations_xid on revocations (xid);
    create index revocations_expiry on revocations (expires_at);

    -- Append-only. No foreign keys: history outlives what it is about, and a key to tenants would make every writer of a
    -- tenant lock the same row. The primary key is also the order in which it is read.
    create table audit_events (
      tenant_id  uuid not null default current_tenant_id(),
      created_at timestamptz not null default clock_timestamp(),
      id         uuid not null default uuid_v7(),
      action     text not null,
      actor_id   uuid default current_user_id(),
      target_id  uuid,
      session_id uuid,
      ip         inet default (current_request() ->> 'ip')::inet,
      user_agent text default current_request() ->> 'user_agent',
      request_id text default current_request() ->> 'id',
      detail     jsonb,
      primary key (tenant_id, created_at, id)
    ) partition by range (created_at);

    -- == policies =====================================================================================================

    -- The canonical policy, the only permissive one that aggios_app meets on a tenant's table.
    do $$
    declare
      name text;
    begin
      foreach name in array array['memberships', 'sessions', 'revocations', 'audit_events'] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy tenant_isolation on %I
          using (tenant_id = (select current_tenant_id())) with check (tenant_id = (select current_tenant_id()))', name);
      end loop;
    end $$;

    -- Nobody is made a member by somebody else: an insert needs the user's own act (register, accept an invitation).
    -- Without it a tenant could read any identity whose id it knows by adding it.
    create policy own_act on memberships as restrictive for insert
      with check (user_id = (select current_user_id()));

    alter table tenants enable row level security;
    alter table tenants force row level security;
    create policy tenant_isolation on tenants
      using (id = (select current_tenant_id())) with check (id = (select current_tenant_id()));

    -- Visible to itself and to the tenants it is a member of; changed only by itself.
    -- offset 0 forbids the planner to hash every member of the tenant in order to show one.
    -- A policy filters, it is no way in: a query that wants a tenant's users starts from memberships.
    alter table users enable row level security;
    alter table users force row level security;
    create policy visible on users for select
      using (id = (select current_user_id()) or exists (
        select from memberships m where m.tenant_id = (select current_tenant_id()) and m.user_id = users.id offset 0));
    create policy own_insert on users for insert with check (id = (select current_user_id()));
    create policy own_update on users for update using (id = (select current_user_id()));

    -- == what the server may do =======================================================================================
    -- Column by column. password_hash is written but never read: it leaves only through find_identity, one e-mail at a time.

    grant select, insert (id, slug, name), update (name, settings, version, updated_at) on tenants to aggios_app;
    grant select (id, email, name, avatar_url, password_version, email_verified_at, disabled_at, version, created_at,
        updated_at),
      insert (id, email, name, password_hash, pepper_id),
      update (name, password_hash, pepper_id, password_version, version, updated_at) on users to aggios_app;
    grant select, insert (user_id, role, last_used_at), update (last_used_at) on memberships to aggios_app;
    grant select, insert (id, user_id, expires_at), update (counter, rotated_at, revoked_at) on sessions to aggios_app;
    grant insert (kind, subject, state, expires_at) on revocations to aggios_app;
    grant select, insert (action, actor_id, target_id, session_id, detail) on audit_events to aggios_app;

    -- == the directory ================================================================================================
    -- Everything that must answer without a tenant, or across tenants. Bodies are parsed now (begin atomic), so no
    -- search_path can redirect them. This list is the allow-list of the catalogue check.

    grant select (id, slug, name, status, settings) on tenants to aggios_directory;
    grant select (id, email, password_hash, pepper_id, password_version, email_verified_at, disabled_at), delete
      on users to aggios_directory;
    grant select, delete, update (updated_at) on memberships to aggios_directory;
    grant select, update (revoked_at), delete on sessions to aggios_directory;
    grant select, insert (tenant_id, kind, subject, state, expires_at), delete on revocations to aggios_directory;
    grant insert (tenant_id, action, actor_id, target_id, session_id, detail) on audit_events to aggios_directory;

    create policy directory on tenants for select to aggios_directory using (true);
    create policy directory on users to aggios_directory using (true);
    create policy directory on memberships to aggios_directory using (true);
    create policy directory on sessions to aggios_directory using (true);
    create policy directory on revocations to aggios_directory using (true);
    create policy directory on audit_events for insert to aggios_directory with check (true);

    -- The tenant of a host name.
    create function find_tenant(slug text)
      returns table (id uuid, slug text, name text, status text, settings jsonb)
      language sql stable security definer rows 1
    begin atomic
      select t.id, t.slug, t.name, t.status, t.settings from tenants t where t.slug = find_tenant.slug;
    end;

    -- What sign-in needs to check a password, for one address.
    create function find_identity(email text)
      returns table (id uuid, password_hash text, pepper_id text, password_version integer, disabled_at timestamptz)
      language sql stable security definer rows 1
    begin atomic
      select u.id, u.password_hash, u.pepper_id, u.password_version, u.disabled_at
      from users u where u.email = find_identity.email;
    end;

    -- The same for the user in app.user_id, who must know the password again before something grave.
    create function my_credentials()
      returns table (email text, password_hash text, pepper_id text, password_version integer)
      language sql stable security definer rows 1
    begin atomic
      select u.email, u.password_hash, u.pepper_id, u.password_version
      from users u where u.id = (select current_user_id());
    end;

    -- The tenants of the user in app.user_id. A function and not a policy: a second permissive policy on memberships would
    -- add this user's rows elsewhere to every query of a tenant.
    create function my_tenants()
      returns table (id uuid, slug text, name text, status text, role text, last_used_at timestamptz)
      language sql stable security definer rows 5
    begin atomic
      select t.id, t.slug, t.name, t.status, m.role, m.last_used_at
      from memberships m join tenants t on t.id = m.tenant_id
      where m.user_id = (select current_user_id());
    end;

    -- The open sessions of the user in app.user_id, in all tenants.
    create function my_sessions(idle_life interval)
      returns table (id uuid, tenant_id uuid, tenant_slug text, user_agent text, ip inet, created_at timestamptz,
        last_used_at timestamptz, expires_at timestamptz)
      language sql stable security definer rows 10
    begin atomic
      select s.id, s.tenant_id, t.slug, s.user_agent, s.ip, s.created_at, s.rotated_at,
        least(s.expires_at, s.rotated_at + idle_life)
      from memberships m
      join sessions s on s.tenant_id = m.tenant_id and s.user_id = m.user_id
      join tenants t on t.id = m.tenant_id
      where m.user_id = (select current_user_id())
        and s.revoked_at is null and s.expires_at > now() and s.rotated_at + idle_life > now();
    end;

    -- Ends sessions of the user in app.user_id, in all tenants: "one" of them, or all but "keep".
    create function end_my_sessions(one uuid, keep uuid, token_life interval) returns bigint
      language sql volatile security definer
    begin atomic
      with mine as materialized (
        select s.tenant_id, s.id
        from memberships m join sessions s on s.tenant_id = m.tenant_id and s.user_id = m.user_id
        where m.user_id = (select current_user_id())
          and (one is null or s.id = one) and s.id is distinct from keep
          and s.revoked_at is null and s.expires_at > now()
        order by s.tenant_id, s.id
        for no key update of s
      ), ended as (
        update sessions s set revoked_at = now() from mine where s.tenant_id = mine.tenant_id and s.id = mine.id
        returning s.tenant_id, s.id
      ), published as (
        insert into revocations (tenant_id, kind, subject, expires_at)
        select tenant_id, 'session', id, now() + token_life from ended
        returning 1
      ), audited as (
        insert into audit_events (tenant_id, action, session_id) select tenant_id, 'session.ended', id from ended
      )
      select count(*) from published;
    end;

    -- Ends the identity in app.user_id: sessions, memberships, the user itself. 'last_owner' when some agency would be left
    -- without one; then nothing has changed. Owners who leave at the same moment wait for each other on the same rows.
    create function end_my_identity(token_life interval) returns text
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me uuid := current_user_id();
    begin
      perform from memberships o
        where o.role = 'owner'
          and o.tenant_id in (select m.tenant_id from memberships m where m.user_id = me and m.role = 'owner')
        order by o.tenant_id, o.user_id
        for update;
      if exists (
        select from memberships m
        where m.user_id = me and m.role = 'owner' and not exists (
          select from memberships o where o.tenant_id = m.tenant_id and o.role = 'owner' and o.user_id <> me)
      ) then
        return 'last_owner';
      end if;
      insert into revocations (tenant_id, kind, subject, expires_at)
        select m.tenant_id, 'member', me, now() + token_life from memberships m where m.user_id = me;
      insert into audit_events (tenant_id, action, actor_id, target_id)
        select m.tenant_id, 'user.deleted', me, me from memberships m where m.user_id = me;
      delete from memberships where user_id = me;
      delete from users where id = me;
      return 'ended';
    end $body$;

    -- The peppers that stored hashes need, each found by one step in the index.
    create function peppers_in_use() returns setof text
      language sql stable security definer
    begin atomic
      with recursive pepper (id) as (
        select min(pepper_id) from users
        union all
        select (select min(u.pepper_id) from users u where u.pepper_id > pepper.id) from pepper where pepper.id is not null
      )
      select id from pepper where id is not null;
    end;

    -- Revocations that a reader who has seen everything before "seen" can have missed, and the "seen" of its next call.
    -- Whatever committed after the last look either was in progress then (its xid is not below that snapshot's xmin) or
    -- began later. Nothing is ever missed, however late a writer commits; some rows come again and are idempotent.
    -- Start with '0', and start again with '0' after any failed call (a failover may hand out xids again).
    create function revocations_since(seen xid8)
      returns table (next xid8, id bigint, tenant_id uuid, kind text, subject uuid, state text, expires_at timestamptz)
      language sql stable security definer rows 10
    begin atomic
      select pg_snapshot_xmin(pg_current_snapshot()), r.id, r.tenant_id, r.kind, r.subject, r.state, r.expires_at
      from (values (1)) as always (one)
      left join revocations r on r.xid >= seen and r.expires_at > now()
      order by r.id;
    end;

    -- Removes what can no longer matter. Any process calls it now and then; one works, the others find nothing to do.
    create function sweep(batch integer) returns bigint
      language sql volatile security definer
    begin atomic
      with turn as materialized (select pg_try_advisory_xact_lock(hashtext('aggios sweep')) as mine),
      dead_revocations as (
        delete from revocations where (tenant_id, id) in (
          select r.tenant_id, r.id from revocations r
          where r.expires_at < now() and (select mine from turn) order by r.expires_at limit batch)
        returning 1
      ), dead_sessions as (
        delete from sessions where (tenant_id, id) in (
          select s.tenant_id, s.id from sessions s
          where s.expires_at < now() and (select mine from turn) order by s.expires_at limit batch)
        returning 1
      )
      select (select count(*) from dead_revocations) + (select count(*) from dead_sessions);
    end;

    -- Hand them over: create on the schema is needed for the moment of the hand-over only.
    grant create on schema public to aggios_directory;
    do $$
    declare
      name text;
    begin
      foreach name in array array['find_tenant(text)', 'find_identity(text)', 'my_credentials()', 'my_tenants()',
        'my_sessions(interval)', 'end_my_sessions(uuid, uuid, interval)', 'end_my_identity(interval)',
        'peppers_in_use()', 'revocations_since(xid8)', 'sweep(integer)'] loop
        execute format('revoke all on function %s from public', name);
        execute format('grant execute on function %s to aggios_app', name);
        execute format('alter function %s owner to aggios_directory', name);
      end loop;
    end $$;
    revoke create on schema public from aggios_directory;

    -- The rare end of a rotation, with the caller's rights and under the caller's policies. A function so that the statement
    -- pays for it only when it happens.
    create function revoke_family(tenant uuid, family uuid, owner uuid, token_life interval) returns void
      language sql volatile
    begin atomic
      update sessions set revoked_at = now() where tenant_id = tenant and id = family;
      insert into revocations (kind, subject, expires_at) values ('session', family, now() + token_life);
      insert into audit_events (action, actor_id, session_id) values ('session.refresh_reused', owner, family);
    end;
    revoke all on function revoke_family(uuid, uuid, uuid, interval) from public;
    grant execute on function revoke_family(uuid, uuid, uuid, interval) to aggios_app;

    -- Months of audit events, this one and the next two. Owned by the owner because it creates tables; takes nothing from
    -- its caller. A partition has no grants, and row security without a policy: it is reached through its parent or not at all.
    create function ensure_audit_partitions() returns void
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      month timestamp; -- in UTC; adding a month to a timestamptz would do it in the session's time zone
      name text;
    begin
      for ahead in 0 .. 2 loop
        month := date_trunc('month', now() at time zone 'utc') + make_interval(months => ahead);
        name := 'audit_events_' || to_char(month, 'yyyy_mm');
        continue when to_regclass(name) is not null;
        perform pg_advisory_xact_lock(hashtext('aggios audit partitions'));
        continue when to_regclass(name) is not null;
        -- built apart and attached: readers and writers of the parent are not stopped
        execute format('create table %I (like audit_events including defaults including constraints)', name);
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('alter table audit_events attach partition %I for values from (%L) to (%L)',
          name, month at time zone 'utc', (month + interval '1 month') at time zone 'utc');
      end loop;
    end $body$;
    revoke all on function ensure_audit_partitions() from public;
    grant execute on function ensure_audit_partitions() to aggios_app;
    select ensure_audit_partitions();
  `.execute(db)
}

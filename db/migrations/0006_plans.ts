import { type Kysely, sql } from 'kysely'

/**
 * Plans: what an agency may use. A plan belongs to no tenant, and the server meets it only through functions: which limits one
 * tenant has, all plans, and the change of one.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- null: as the server's settings say
    create table plans (
      name           text collate "C" primary key check (name ~ '^[a-z][a-z0-9-]{0,38}$'),
      -- so many in so long; 0 is no limit
      requests       integer check (requests >= 0),
      window_seconds integer check (window_seconds > 0),
      -- bytes
      storage_quota  bigint check (storage_quota >= 0),
      check ((requests is null) = (window_seconds is null))
    );
    insert into plans (name) values ('free');
    alter table plans enable row level security;
    alter table plans force row level security;
    alter table tenants add foreign key (plan) references plans;
    grant update (plan) on tenants to aggios_app;

    grant select (plan) on tenants to aggios_directory;
    grant select, insert, update on plans to aggios_directory;
    create policy directory on plans to aggios_directory using (true);

    -- kind plan: whatever is remembered of any tenant's plan is to be read again
    alter table revocations drop constraint revocations_kind_check;
    alter table revocations add constraint revocations_kind_check check (kind in ('session', 'member', 'tenant', 'plan'));

    create function tenant_limits(tenant uuid)
      returns table (requests integer, window_seconds integer, storage_quota bigint)
      language sql stable security definer rows 1
    begin atomic
      select p.requests, p.window_seconds, p.storage_quota
      from tenants t join plans p on p.name = t.plan where t.id = tenant_limits.tenant;
    end;

    create function list_plans()
      returns table (name text, requests integer, window_seconds integer, storage_quota bigint, tenants bigint)
      language sql stable security definer
    begin atomic
      select p.name, p.requests, p.window_seconds, p.storage_quota,
        (select count(*) from tenants t where t.plan = p.name)
      from plans p order by p.name;
    end;

    -- Makes or changes a plan, and tells every process. The entry lives for a minute: long after each has read it.
    create function set_plan(name text, requests integer, window_seconds integer, storage_quota bigint) returns void
      language sql volatile security definer
    begin atomic
      insert into plans as p values (set_plan.name, set_plan.requests, set_plan.window_seconds, set_plan.storage_quota)
        on conflict on constraint plans_pkey do update
        set requests = excluded.requests, window_seconds = excluded.window_seconds, storage_quota = excluded.storage_quota;
      insert into revocations (tenant_id, kind, subject, expires_at)
        values ('00000000-0000-0000-0000-000000000000', 'plan', '00000000-0000-0000-0000-000000000000',
          now() + interval '1 minute');
    end;

    grant create on schema public to aggios_directory;
    do $$
    declare
      name text;
    begin
      foreach name in array array['tenant_limits(uuid)', 'list_plans()', 'set_plan(text, integer, integer, bigint)'] loop
        execute format('revoke all on function %s from public', name);
        execute format('grant execute on function %s to aggios_app', name);
        execute format('alter function %s owner to aggios_directory', name);
      end loop;
    end $$;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

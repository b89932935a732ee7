import { type Kysely, sql } from 'kysely'

/**
 * What operators see and change across agencies: the list of agencies, mails that wait or were given up, and when each
 * background job last succeeded. None of it shows what people wrote, nor an address.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- One row a job. Every process writes it, once a minute at most.
    create table job_runs (
      name         text primary key check (name ~ '^[a-z_]{1,40}$'),
      succeeded_at timestamptz,
      failed_at    timestamptz,
      error        text check (length(error) <= 500)
    );
    alter table job_runs enable row level security;
    alter table job_runs force row level security;
    create policy directory on job_runs to aggios_directory using (true);
    grant select, insert, update on job_runs to aggios_directory;

    grant select (kind, subject_id, last_error), update (dropped_at, last_error) on outbox to aggios_directory;

    grant create on schema public to aggios_directory;
    set local role aggios_directory;

    create function record_job(job text, failure text) returns void
      language sql volatile security definer
    begin atomic
      insert into job_runs as r (name, succeeded_at, failed_at, error)
      values (job, case when failure is null then now() end, case when failure is not null then now() end, left(failure, 500))
      on conflict (name) do update set
        succeeded_at = coalesce(excluded.succeeded_at, r.succeeded_at),
        failed_at = coalesce(excluded.failed_at, r.failed_at),
        error = coalesce(excluded.error, r.error);
    end;

    create function list_jobs() returns table (name text, succeeded_at timestamptz, failed_at timestamptz, error text)
      language sql stable security definer
    begin atomic
      select r.name, r.succeeded_at, r.failed_at, r.error from job_runs r order by r.name;
    end;

    -- A page of agencies, by slug, or the one that is named. "bytes" counts deleted files too, until they are removed.
    create function list_agencies(one text, after text, batch integer)
      returns table (id uuid, slug text, name text, status text, plan text, created_at timestamptz, purge_at timestamptz,
        members bigint, bytes bigint)
      language sql stable security definer
    begin atomic
      select t.id, t.slug, t.name, t.status, t.plan, t.created_at, t.purge_at,
        (select count(*) from memberships m where m.tenant_id = t.id),
        coalesce((select u.bytes from storage_usage u where u.tenant_id = t.id), 0)
      from tenants t where t.slug > after and (one is null or t.slug = one) order by t.slug limit batch;
    end;

    -- Mails that were not sent: those that wait, or those that were given up. The oldest first.
    create function list_mails(given_up boolean, batch integer)
      returns table (id uuid, agency_id uuid, kind text, attempts integer, created_at timestamptz, due_at timestamptz,
        dropped_at timestamptz, last_error text)
      language sql stable security definer
    begin atomic
      select m.* from (
        select o.id, o.tenant_id as agency_id, o.kind, o.attempts, o.created_at, o.due_at, o.dropped_at, o.last_error from outbox o
        where o.sent_at is null and (o.dropped_at is not null) = given_up
        union all
        select a.id, a.agency_id, a.kind, a.attempts, a.created_at, a.due_at, a.dropped_at, a.last_error from account_mails a
        where a.sent_at is null and (a.dropped_at is not null) = given_up
      ) m order by m.due_at, m.id limit batch;
    end;

    -- Tries a mail again from the beginning, or gives it up. Says of which kind it is, and of which agency; nothing when there is no
    -- such mail, or it was sent, or given up already.
    create function operate_mail(mail uuid, act text) returns table (kind text, agency_id uuid)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    #variable_conflict use_column
    declare
      again constant boolean := act = 'retry';
      agency uuid;
      found_kind text;
    begin
      if act not in ('retry', 'drop') then
        raise 'operate_mail: there is no act %', act;
      end if;
      update outbox o set due_at = now(), attempts = case when again then 0 else o.attempts end,
        dropped_at = case when not again then now() end, last_error = case when again then o.last_error else 'given up by an operator' end
      where o.id = mail and o.sent_at is null and (again or o.dropped_at is null)
      returning o.kind, o.tenant_id into found_kind, agency;
      if found then
        insert into audit_events (tenant_id, action, target_id, detail)
          values (agency, case when again then 'mail.retried' else 'mail.dropped' end, mail,
            jsonb_build_object('by', 'operator', 'kind', found_kind));
        return query select found_kind, agency;
        return;
      end if;
      update account_mails a set due_at = now(), attempts = case when again then 0 else a.attempts end,
        dropped_at = case when not again then now() end, last_error = case when again then a.last_error else 'given up by an operator' end,
        revision = a.revision + 1
      where a.id = mail and a.sent_at is null and (again or a.dropped_at is null)
      returning a.kind, a.agency_id into found_kind, agency;
      if found then
        return query select found_kind, agency;
      end if;
    exception when unique_violation then
      -- a newer mail has taken its place
      return;
    end $body$;

    -- as the owner of the functions: PostgreSQL only warns when anybody else revokes
    do $$
    declare
      name text;
    begin
      foreach name in array array['record_job(text, text)', 'list_jobs()', 'list_agencies(text, text, integer)',
        'list_mails(boolean, integer)', 'operate_mail(uuid, text)'] loop
        execute format('revoke all on function %s from public', name);
        execute format('grant execute on function %s to aggios_app', name);
      end loop;
    end $$;
    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/** What operators want to know about work that waits, over all agencies: numbers and times, and nothing of any agency. */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    grant create on schema public to aggios_directory;

    -- "mails_due_since": the oldest mail that should have been sent. "unsealed_since": the oldest event without a seal.
    create function upkeep() returns table (mails_due bigint, mails_due_since timestamptz, unsealed_since timestamptz)
      language sql stable security definer rows 1
    begin atomic
      select count(*), min(m.due_at),
        (select e.created_at from audit_horizon h cross join lateral (
          select a.created_at from audit_events a where a.created_at > h.sealed_to order by a.created_at limit 1) e)
      from (
        select o.due_at from outbox o where o.due_at <= now() and o.sent_at is null and o.dropped_at is null
        union all
        select a.due_at from account_mails a where a.due_at <= now() and a.sent_at is null and a.dropped_at is null
      ) m;
    end;
    revoke all on function upkeep() from public;
    grant execute on function upkeep() to aggios_app;
    alter function upkeep() owner to aggios_directory;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

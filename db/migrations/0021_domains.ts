import { type Kysely, sql } from 'kysely'

/**
 * The proof that an agency may speak for a domain: a TXT record of DNS with a value of its own.
 *
 * A proof counts inside the agency only, so two agencies may prove one domain, and neither learns of the other. It is
 * looked up again every day, and ends after three days without the record.
 *
 * The version before knows no domains.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- challenge: what the record must say. It is random and no secret: whoever asks DNS sees it. It is not computed from a
    -- secret of the server, because then a change of the secret would end every proof.
    -- due_at: when a proven domain is looked up again.
    alter table tenant_domains
      add column challenge text not null default replace(gen_random_uuid()::text, '-', ''),
      add column due_at timestamptz not null default now();
    create index tenant_domains_due on tenant_domains (due_at) where verified_at is not null;
    grant insert (name), update (verified_at, checked_at, failures, due_at) on tenant_domains to aggios_app;
    grant update (due_at) on tenant_domains to aggios_directory;

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- The next domains to look up, leased to the caller: when it dies, another takes them once the lease is over. due_at names
    -- the lease, without microseconds, which a client of JavaScript would lose.
    create function claim_domains(batch integer, lease interval)
      returns table (tenant_id uuid, name text, challenge text, due_at timestamptz)
      language sql volatile security definer
    begin atomic
      with due as materialized (
        select d.tenant_id, d.name from tenant_domains d join tenants t on t.id = d.tenant_id
        where d.verified_at is not null and d.due_at <= now() and t.status = 'active'
        order by d.due_at limit batch
        for no key update of d skip locked
      )
      update tenant_domains d set due_at = date_trunc('milliseconds', now()) + lease
      from due where d.tenant_id = due.tenant_id and d.name = due.name
      returning d.tenant_id, d.name, d.challenge, d.due_at;
    end;

    -- Tells the people who run the agency in app.tenant_id: those with one of the roles. At most a hundred get the mail.
    create function queue_agency_notice(kind text, detail jsonb, roles text[]) returns void
      language sql volatile security definer
    begin atomic
      insert into account_mails (kind, user_id, agency_id, detail)
      select queue_agency_notice.kind, m.user_id, m.tenant_id, queue_agency_notice.detail
      from memberships m where m.tenant_id = (select current_tenant_id()) and m.role = any (roles)
      order by m.user_id limit 100;
    end;

    revoke all on function claim_domains(integer, interval), queue_agency_notice(text, jsonb, text[]) from public;
    grant execute on function claim_domains(integer, interval), queue_agency_notice(text, jsonb, text[]) to aggios_app;
    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

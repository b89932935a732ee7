import { type Kysely, sql } from 'kysely'

/**
 * Makes dumps of the database restorable.
 *
 * PostgreSQL prints a statement wrongly that has `excluded` in itself and in its `with`: it names the second one `excluded_1`, which
 * does not exist. So pg_dump wrote a definition of `request_email_change` that no database accepts. The function does the same in
 * two statements.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- Two links and their mails, for the user in app.user_id. Earlier ones are dead. Whether the address is taken is not asked here.
    create or replace function request_email_change(new_email text, old_mailbox text, new_mailbox text, agency uuid, life interval)
      returns void
      language sql volatile security definer
    begin atomic
      insert into account_links (user_id, purpose, email, password_version, new_email, expires_at)
      select u.id, p.purpose, u.email, u.password_version, request_email_change.new_email, now() + life
      from users u cross join (values ('change_from'), ('change_to')) as p (purpose)
      where u.id = (select current_user_id())
      on conflict (user_id, purpose) do update set id = excluded.id, email = excluded.email,
        password_version = excluded.password_version, new_email = excluded.new_email, expires_at = excluded.expires_at,
        used_at = null;
      insert into account_mails as m (kind, user_id, address, mailbox, agency_id, link_id)
      select l.purpose, l.user_id, case l.purpose when 'change_from' then l.email else l.new_email end,
        case l.purpose when 'change_from' then old_mailbox else new_mailbox end, agency, l.id
      from account_links l
      where l.user_id = (select current_user_id()) and l.purpose in ('change_from', 'change_to')
      on conflict (user_id, kind) where link_id is not null and user_id is not null and sent_at is null
          and dropped_at is null and kind in ('change_from', 'change_to')
        do update set address = excluded.address, mailbox = excluded.mailbox, agency_id = excluded.agency_id,
          link_id = excluded.link_id, asked_by = excluded.asked_by, revision = m.revision + 1, attempts = 0, due_at = now(),
          created_at = now();
    end;

    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * Bounds how many mails people cause.
 *
 * The outbox counts: each entry says which mailbox it is for and who caused it. An entry lives for a month, so the counts of a day
 * survive a restart and hold for all processes. Entries of a version that does not fill the columns count for nobody.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table outbox
      -- one spelling for each mailbox, not necessarily the address that the mail goes to
      add mailbox text collate "C",
      add sender_id uuid default current_user_id();
    create index outbox_mailbox on outbox (mailbox, created_at);
    create index outbox_sender on outbox (sender_id, created_at);
    grant insert (mailbox) on outbox to aggios_app;
    grant select (mailbox, sender_id) on outbox to aggios_directory;

    -- Whether the user in app.user_id may cause one more mail to this mailbox. Null: yes; else the limit that is spent, and the
    -- seconds until it is not. A limit of 0 is none. Whoever asks for the same mailbox, or as the same user, waits until this
    -- transaction ends: what is counted here can't be overtaken by entries that are not committed yet.
    create function mail_allowance(mailbox text, to_mailbox integer, mailbox_window interval,
        of_sender integer, sender_window interval, of_unverified integer, unverified_window interval)
      returns table (spent text, wait_seconds integer)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me uuid := current_user_id();
      verified boolean := exists (select from users u where u.id = me and u.email_verified_at is not null);
      most integer := case when verified then of_sender else of_unverified end;
      life interval := case when verified then sender_window else unverified_window end;
      oldest timestamptz;
    begin
      -- always in this order, so that nobody waits for somebody who waits for them
      perform pg_advisory_xact_lock(hashtextextended('aggios mail of ' || coalesce(me::text, ''), 0)) where me is not null;
      perform pg_advisory_xact_lock(hashtextextended('aggios mail to ' || mailbox, 0));
      if me is not null and most > 0 then
        select o.created_at into oldest from outbox o
          where o.sender_id = me and o.created_at > clock_timestamp() - life
          order by o.created_at desc offset most - 1 limit 1;
        if found then
          return query select case when verified then 'sender' else 'unverified_sender' end, seconds_until(oldest + life);
          return;
        end if;
      end if;
      if to_mailbox > 0 then
        select o.created_at into oldest from outbox o
          where o.mailbox = mail_allowance.mailbox and o.created_at > clock_timestamp() - mailbox_window
          order by o.created_at desc offset to_mailbox - 1 limit 1;
        if found then
          return query select 'recipient', seconds_until(oldest + mailbox_window);
        end if;
      end if;
    end $body$;
    create function seconds_until(moment timestamptz) returns integer
      language sql volatile
      return greatest(1, ceil(extract(epoch from moment - clock_timestamp())))::integer;
    revoke all on function seconds_until(timestamptz) from public;
    grant execute on function seconds_until(timestamptz) to aggios_directory;
    revoke all on function mail_allowance(text, integer, interval, integer, interval, integer, interval) from public;
    grant execute on function mail_allowance(text, integer, interval, integer, interval, integer, interval) to aggios_app;
    grant create on schema public to aggios_directory;
    alter function mail_allowance(text, integer, interval, integer, interval, integer, interval) owner to aggios_directory;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * An agency tells its members by mail what it demands of them: a second factor, or its provider.
 *
 * The version before knows none of these mails, and leaves them to newer processes.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- What an agency demands of its members: a second factor, or its provider. The first word says which of both.
    create function is_agency_news(kind text) returns boolean
      language sql immutable parallel safe
      return kind in ('factor_demanded', 'factor_demand_ended', 'provider_demanded', 'provider_demand_ended');

    -- What an agency tells people about itself: news, and notices to those who run it. Everything else is about a person's account.
    create function is_from_agency(kind text) returns boolean
      language sql immutable parallel safe
      return is_agency_news(kind) or kind in ('break_glass_used', 'domain_lost');

    -- Tells the members of the agency in app.tenant_id what it demands from now on. Only verified addresses get notices. What waits
    -- to say something older of the kind, and was never tried, is deleted. The order of locks (0024) would have users and mails
    -- before the rows that the caller has locked, so this waits for no lock: somebody whose account is about to end, or whose
    -- address is just being changed, is not told. A mail that is being prepared stays, and is sent or dropped.
    create function queue_agency_news(kind text, detail jsonb) returns void
      language sql volatile security definer
    begin atomic
      delete from account_mails o where o.id in (
        select w.id from account_mails w
        where w.user_id in (select m.user_id from memberships m where m.tenant_id = (select current_tenant_id()))
          and w.agency_id = (select current_tenant_id()) and w.sent_at is null and w.dropped_at is null and w.attempts = 0
          and is_agency_news(w.kind) and split_part(w.kind, '_', 1) = split_part(queue_agency_news.kind, '_', 1)
        for update skip locked);
      insert into account_mails (kind, user_id, agency_id, detail)
      select queue_agency_news.kind, m.user_id, m.tenant_id, queue_agency_news.detail
      from memberships m join users u on u.id = m.user_id
      where m.tenant_id = (select current_tenant_id()) and u.email_verified_at is not null and u.disabled_at is null
        and is_agency_news(queue_agency_news.kind)
      for key share of u skip locked;
    end;

    -- As in 0021, and waits for no lock: a sign-in and the check of a domain hold what comes after users in the order of locks.
    create or replace function queue_agency_notice(kind text, detail jsonb, roles text[]) returns void
      language sql volatile security definer
    begin atomic
      insert into account_mails (kind, user_id, agency_id, detail)
      select queue_agency_notice.kind, m.user_id, m.tenant_id, queue_agency_notice.detail
      from memberships m join users u on u.id = m.user_id
      where m.tenant_id = (select current_tenant_id()) and m.role = any (roles)
      order by m.user_id limit 100
      for key share of u skip locked;
    end;

    -- As in 0017, but what an agency tells has counts of its own, so that no agency keeps a person from learning what happened to
    -- their account, or what another agency tells. It goes out in the name of that agency only: it is dropped when the agency is not
    -- active. News is dropped when there is something newer of the kind, and for whoever has left the agency.
    create or replace function prepare_account_mail(mail uuid, most integer, in_window interval, most_notices integer, reset_life interval,
        verification_life interval)
      returns table (kind text, address text, name text, agency_id uuid, agency text, slug text, locale text, link_id uuid,
        expires_at timestamptz, attempts integer, revision integer, detail jsonb, asked_at timestamptz, refused text)
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    #variable_conflict use_column
    declare
      waiting account_mails;
      person record;
      holder record;
      home record;
      life interval;
      allowed integer := most;
      refusal text;
    begin
      select * into waiting from account_mails m
        where m.id = mail and m.sent_at is null and m.dropped_at is null for update;
      if not found then
        return;
      end if;
      if waiting.user_id is null then
        select u.id, u.email, u.name, u.password_version, u.email_verified_at, u.disabled_at into person
          from users u where u.email = waiting.address;
      else
        select u.id, u.email, u.name, u.password_version, u.email_verified_at, u.disabled_at into person
          from users u where u.id = waiting.user_id;
      end if;
      -- notices go to mailboxes that were proven only: else a stranger could have many sent to one that is not theirs
      if person.id is null or person.disabled_at is not null or (waiting.kind = 'verification'
        and (person.email_verified_at is not null or person.email <> waiting.address))
        or (waiting.address is null and person.email_verified_at is null) then
        perform drop_account_mail(mail);
        return;
      end if;

      if is_agency_news(waiting.kind) and (
        not exists (select from memberships m where m.tenant_id = waiting.agency_id and m.user_id = person.id)
        or exists (select from account_mails m
          where m.user_id = person.id and m.agency_id = waiting.agency_id and is_agency_news(m.kind) and m.id > waiting.id
            and split_part(m.kind, '_', 1) = split_part(waiting.kind, '_', 1))
      ) then
        perform drop_account_mail(mail);
        return;
      end if;

      select t.id, t.name, t.slug, t.settings ->> 'locale' as locale into home
        from memberships m join tenants t on t.id = m.tenant_id
        where m.user_id = person.id and t.status = 'active'
        order by (t.id = waiting.agency_id) desc nulls last, m.last_used_at desc nulls last, t.id limit 1;
      if is_from_agency(waiting.kind) and home.id is distinct from waiting.agency_id then
        perform drop_account_mail(mail);
        return;
      end if;

      if waiting.kind in ('reset', 'verification', 'change_from', 'change_to') then
        life := case waiting.kind when 'verification' then verification_life else reset_life end;
        if waiting.link_id is null then
          -- each kind has a count of its own, so that invitations keep nobody from their account. Strangers can't use up what is
          -- asked for from a network that the account is known from, if its owner was ever proven to have the mailbox, nor what a
          -- newcomer needs, who has a count of their own. An operator is not limited
          if waiting.kind = 'verification'
            or (person.email_verified_at is not null and is_known_network(person.email, (waiting.asked_by ->> 'ip')::inet)) then
            allowed := most * 10;
          end if;
          if most > 0 and waiting.detail ->> 'by' is distinct from 'operator' and (
            allowed <= (select count(*) from account_mails m
              where m.mailbox = waiting.mailbox and m.kind = waiting.kind and m.sent_at > now() - in_window)
            or (waiting.kind = 'verification' and most <= (select count(*) from account_mails m
              where m.user_id = person.id and m.kind = 'verification' and m.sent_at > now() - in_window))
          ) then
            refusal := 'recipient';
          else
            insert into account_links as l (user_id, purpose, email, password_version, expires_at)
              values (person.id, waiting.kind, person.email, person.password_version, now() + life)
              on conflict (user_id, purpose) do update set id = excluded.id, email = excluded.email,
                password_version = excluded.password_version, expires_at = excluded.expires_at, used_at = null
              returning l.id into waiting.link_id;
            update account_mails m set link_id = waiting.link_id where m.id = mail;
            if waiting.kind = 'reset' then
              insert into audit_events (tenant_id, action, actor_id, target_id, ip, user_agent, request_id, detail)
                select m.tenant_id, 'user.password_reset_requested', null, person.id, (waiting.asked_by ->> 'ip')::inet,
                  waiting.asked_by ->> 'user_agent', waiting.asked_by ->> 'id', waiting.detail
                from memberships m where m.user_id = person.id;
            end if;
          end if;
        else
          -- good for its whole time from when the mail is sent
          update account_links l set expires_at = now() + life
            where l.id = waiting.link_id and l.used_at is null and l.email = person.email
              and l.password_version = person.password_version;
          if not found then
            perform drop_account_mail(mail);
            return;
          end if;
          -- a person who changes their address again and again fills their own mailbox, unless it is not theirs
          if waiting.kind = 'change_from' and most > 0 and (case when person.email_verified_at is null then most else most * 10 end)
            <= (select count(*) from account_mails m
              where m.mailbox = waiting.mailbox and m.kind = waiting.kind and m.sent_at > now() - in_window) then
            refusal := 'recipient';
          end if;
        end if;
        if waiting.kind = 'change_to' then
          select u.id, u.disabled_at into holder from users u where u.email = waiting.address;
          if holder.disabled_at is not null then
            perform drop_account_mail(mail);
            return;
          elsif holder.id is not null then
            -- whoever has the address learns that somebody wants it, and nothing of who
            waiting.kind := 'address_taken';
            waiting.link_id := null;
          end if;
        end if;
      elsif waiting.address is null and most_notices <= (select count(*) from account_mails m
        where m.user_id = person.id and m.address is null and m.sent_at > now() - interval '1 day'
          and is_agency_news(m.kind) = is_agency_news(waiting.kind) and is_from_agency(m.kind) = is_from_agency(waiting.kind)
          and (m.agency_id = waiting.agency_id or not is_from_agency(waiting.kind))) then
        refusal := 'notices';
      end if;
      if refusal is not null then
        delete from account_mails m where m.id = mail;
      end if;
      return query select waiting.kind, coalesce(waiting.address, person.email), person.name, home.id, home.name, home.slug,
        home.locale, waiting.link_id, now() + life, waiting.attempts, waiting.revision,
        coalesce(waiting.detail, '{}') || coalesce(waiting.asked_by - 'id', '{}'), waiting.asked_at, refusal;
    end $body$;

    revoke all on function queue_agency_news(text, jsonb) from public;
    grant execute on function queue_agency_news(text, jsonb) to aggios_app;
    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

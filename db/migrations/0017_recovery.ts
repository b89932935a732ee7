import { type Kysely, sql } from 'kysely'

/**
 * Recovery of a password, verified addresses, changes of an address, and mails about accounts.
 *
 * A link's token is recomputable (an HMAC over the link's id), so neither it nor a hash of it is stored. A link dies by its use, by a
 * newer one of the same purpose, and by a change of the account's password or address; a disabled person's links are removed.
 *
 * A request writes one mail, whoever has the address. Who has it is looked up when the mail is sent.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- The links that were mailed to a person: one for each purpose, the newest. A change of the address needs two, one from each
    -- mailbox. Reached through the functions below only.
    create table account_links (
      id               uuid primary key default uuid_v7(),
      user_id          uuid not null references users,
      purpose          text not null check (purpose in ('reset', 'verification', 'change_from', 'change_to')),
      -- the account as it was when the link was made: a link of another address or password is dead
      email            text collate "C" not null,
      password_version integer not null,
      -- the address that the account is to have
      new_email        text collate "C" check (new_email = lower(new_email)),
      expires_at       timestamptz not null,
      used_at          timestamptz,
      unique (user_id, purpose),
      check ((new_email is null) = (purpose in ('reset', 'verification')))
    );
    create index account_links_expiry on account_links (expires_at);

    -- Mails to people about their accounts. They belong to no agency: whoever asks may have none, and may not exist.
    -- Without a user it is for whoever has the address when it is sent. Without an address it goes to the one that the person has then.
    create table account_mails (
      id         uuid primary key default uuid_v7(),
      kind       text not null check (kind ~ '^[a-z_]{1,40}$'),
      user_id    uuid references users,
      address    text collate "C" check (address = lower(address)),
      mailbox    text collate "C",
      -- the agency on whose host it was asked for, if there was one
      agency_id  uuid,
      link_id    uuid,
      detail     jsonb,
      sender_id  uuid default current_user_id(),
      asked_by   jsonb default current_request(),
      asked_at   timestamptz not null default now(),
      -- another mail has taken the place of this one: the worker that sends the older one must not settle the newer one
      revision   integer not null default 1,
      attempts   integer not null default 0,
      due_at     timestamptz not null default now(),
      sent_at    timestamptz,
      dropped_at timestamptz,
      last_error text,
      created_at timestamptz not null default now(),
      check (user_id is not null or address is not null)
    );
    create index account_mails_due on account_mails (due_at) where sent_at is null and dropped_at is null;
    -- by network as well: a stranger's request must not stand for that of the owner, whose network is known
    create unique index account_mails_asked on account_mails (kind, address, (coalesce(asked_by ->> 'ip', '')))
      where user_id is null and sent_at is null and dropped_at is null;
    create unique index account_mails_waiting on account_mails (user_id, kind)
      where link_id is not null and user_id is not null and sent_at is null and dropped_at is null
        and kind in ('change_from', 'change_to');
    create unique index account_mails_verification on account_mails (user_id)
      where kind = 'verification' and sent_at is null and dropped_at is null;
    create index account_mails_user on account_mails (user_id, created_at);
    create index account_mails_mailbox on account_mails (mailbox, created_at);
    create index account_mails_sender on account_mails (sender_id, created_at) where kind = 'change_to';
    create index account_mails_age on account_mails (created_at);

    do $$
    declare
      name text;
    begin
      foreach name in array array['account_links', 'account_mails'] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format('create policy directory on %I to aggios_directory using (true)', name);
        execute format('grant select, insert, update, delete on %I to aggios_directory', name);
      end loop;
    end $$;
    grant select (name), update (email_verified_at) on users to aggios_directory;

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- == asking =======================================================================================================

    -- The same work for each address: one row is written, or the one that waits for this network is written again. Whoever asks again
    -- while the mail server is away need not wait for the next attempt, which may be hours away, but for longer than a lease.
    create function request_password_reset(address text, mailbox text, agency uuid, detail jsonb) returns void
      language sql volatile security definer
    begin atomic
      insert into account_mails as m (kind, address, mailbox, agency_id, detail, sender_id)
      values ('reset', request_password_reset.address, request_password_reset.mailbox, agency, request_password_reset.detail, null)
      on conflict (kind, address, (coalesce(asked_by ->> 'ip', ''))) where user_id is null and sent_at is null and dropped_at is null
        do update set asked_at = now(), attempts = 0, due_at = least(m.due_at, now() + interval '2 minutes');
    end;

    -- For the user in app.user_id, unless their address is verified.
    create function request_verification(mailbox text, agency uuid) returns void
      language sql volatile security definer
    begin atomic
      insert into account_mails as m (kind, user_id, address, mailbox, agency_id)
      select 'verification', u.id, u.email, request_verification.mailbox, agency
      from users u where u.id = (select current_user_id()) and u.email_verified_at is null
      on conflict (user_id) where kind = 'verification' and sent_at is null and dropped_at is null
        do update set address = excluded.address, mailbox = excluded.mailbox, asked_at = now(), attempts = 0,
          due_at = least(m.due_at, now() + interval '2 minutes');
    end;

    -- Two links and their mails, for the user in app.user_id. Earlier ones are dead. Whether the address is taken is not asked here.
    create function request_email_change(new_email text, old_mailbox text, new_mailbox text, agency uuid, life interval)
      returns void
      language sql volatile security definer
    begin atomic
      with links as (
        insert into account_links as l (user_id, purpose, email, password_version, new_email, expires_at)
        select u.id, p.purpose, u.email, u.password_version, request_email_change.new_email, now() + life
        from users u cross join (values ('change_from'), ('change_to')) as p (purpose)
        where u.id = (select current_user_id())
        on conflict (user_id, purpose) do update set id = excluded.id, email = excluded.email,
          password_version = excluded.password_version, new_email = excluded.new_email, expires_at = excluded.expires_at,
          used_at = null
        returning l.id, l.user_id, l.purpose, l.email, l.new_email
      )
      insert into account_mails as m (kind, user_id, address, mailbox, agency_id, link_id)
      select l.purpose, l.user_id, case l.purpose when 'change_from' then l.email else l.new_email end,
        case l.purpose when 'change_from' then old_mailbox else new_mailbox end, agency, l.id
      from links l
      on conflict (user_id, kind) where link_id is not null and user_id is not null and sent_at is null
          and dropped_at is null and kind in ('change_from', 'change_to')
        do update set address = excluded.address, mailbox = excluded.mailbox, agency_id = excluded.agency_id,
          link_id = excluded.link_id, asked_by = excluded.asked_by, revision = m.revision + 1, attempts = 0, due_at = now(),
          created_at = now();
    end;

    -- Tells the user in app.user_id what happened to their account.
    create function queue_notice(kind text, detail jsonb) returns void
      language sql volatile security definer
    begin atomic
      insert into account_mails (kind, user_id, agency_id, detail)
      values (queue_notice.kind, current_user_id(), current_tenant_id(), queue_notice.detail);
    end;

    -- Tells a person of a sign-in from a network and with a program that none of their sessions of 90 days has. Not of their
    -- first one: used_here says whether they had a session in this agency before.
    create function notice_new_device(member uuid, session uuid, used_here boolean) returns boolean
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      network constant inet := network_of((current_request() ->> 'ip')::inet);
      program constant text := current_request() ->> 'user_agent';
    begin
      if network is null or not (used_here or exists (
        select from memberships m where m.user_id = member and m.last_used_at is not null and m.tenant_id <> current_tenant_id()
      )) or exists (
        select from memberships m join sessions s on s.tenant_id = m.tenant_id and s.user_id = m.user_id
        where m.user_id = member and s.id <> session and s.created_at > now() - interval '90 days'
          and (network in (network_of(s.ip), network_of(s.last_ip))
            or s.user_agent is not distinct from program or s.last_user_agent = program)
      ) then
        return false;
      end if;
      insert into account_mails (kind, user_id, agency_id) values ('new_device', member, current_tenant_id());
      return true;
    end $body$;

    -- == using a link =================================================================================================

    -- Whose link it is, when it can be used.
    create function find_account_link(link uuid, purpose text) returns table (user_id uuid, email text, name text)
      language sql stable security definer rows 1
    begin atomic
      select u.id, u.email, u.name
      from account_links l join users u on u.id = l.user_id
      where l.id = link and l.purpose = find_account_link.purpose and l.used_at is null and l.expires_at > now()
        and l.email = u.email and l.password_version = u.password_version and u.disabled_at is null;
    end;

    -- Uses up a link of the user in app.user_id, once. Returns the version of the password, or null when it can't be used.
    -- The account is locked first, so that it is the same until the transaction ends.
    create function use_account_link(link uuid, purpose text) returns integer
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      version integer;
    begin
      perform from users u where u.id = current_user_id() for no key update;
      update account_links l set used_at = now() from users u
        where l.id = link and l.purpose = use_account_link.purpose and l.user_id = current_user_id()
          and l.used_at is null and l.expires_at > now() and u.id = l.user_id and l.email = u.email
          and l.password_version = u.password_version and u.disabled_at is null
        returning l.password_version into version;
      return version;
    end $body$;

    -- Confirms a change of the address from one of the two mailboxes. changed: it was the second, and the account has the address.
    -- confirmed: it was the first. unusable: the link can't be used, or somebody else has the address by now.
    create function confirm_email_change(link uuid, purpose text) returns text
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      me constant uuid := current_user_id();
      change record;
      other timestamptz;
    begin
      if use_account_link(link, confirm_email_change.purpose) is null then
        return 'unusable';
      end if;
      select l.email, l.new_email into change from account_links l where l.id = link;
      select l.used_at into other from account_links l
        where l.user_id = me and l.purpose in ('change_from', 'change_to') and l.id <> link and l.new_email = change.new_email;
      if not found then
        return 'unusable';
      elsif other is null then
        return 'confirmed';
      end if;
      begin
        update users u set email = change.new_email, email_verified_at = now(), version = u.version + 1, updated_at = now()
          where u.id = me;
      exception when unique_violation then
        delete from account_links l where l.user_id = me and l.purpose in ('change_from', 'change_to');
        return 'unusable';
      end;
      delete from account_links l where l.user_id = me;
      insert into account_mails (kind, user_id, address, agency_id)
        select 'email_changed', me, change.email, current_tenant_id();
      perform record_my_event('user.email_changed',
        jsonb_build_object('before', jsonb_build_object('email', change.email), 'after', jsonb_build_object('email', change.new_email)));
      return 'changed';
    end $body$;

    -- An event of the user in app.user_id, in each of their agencies.
    create function record_my_event(action text, detail jsonb) returns void
      language sql volatile security definer
    begin atomic
      insert into audit_events (tenant_id, action, actor_id, target_id, detail)
      select m.tenant_id, record_my_event.action, m.user_id, m.user_id, record_my_event.detail
      from memberships m where m.user_id = (select current_user_id());
    end;

    -- == sending ======================================================================================================

    -- The next mails of these kinds, leased to the caller. Kinds that a process does not know are left to newer ones.
    create function claim_account_mail(kinds text[], batch integer, lease interval) returns setof uuid
      language sql volatile security definer
    begin atomic
      with due as materialized (
        select m.id from account_mails m
        where m.due_at <= now() and m.sent_at is null and m.dropped_at is null and m.kind = any (kinds)
        order by m.due_at limit batch
        for no key update skip locked
      )
      update account_mails m set attempts = m.attempts + 1, due_at = now() + lease from due where m.id = due.id
      returning m.id;
    end;

    -- Gives a mail up that is not wanted any more. A change of an address stays counted: else whoever asked for it would learn who
    -- has the address. Called by the next function only, and with its rights.
    create function drop_account_mail(mail uuid) returns void
      language sql volatile
    begin atomic
      update account_mails m set dropped_at = now(), last_error = 'not wanted' where m.id = mail and m.kind = 'change_to';
      delete from account_mails m where m.id = mail and m.kind <> 'change_to';
    end;

    -- What a mail says, decided when it is sent. A mail that is not wanted any more is removed, and no row comes back; a mail that
    -- would be one too many is removed as well, and refused says by which limit. A limit of 0 is none.
    -- The agency is the one on whose host the mail was asked for, if the person is a member there, else the one used last.
    create function prepare_account_mail(mail uuid, most integer, in_window interval, most_notices integer, reset_life interval,
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

      select t.id, t.name, t.slug, t.settings ->> 'locale' as locale into home
        from memberships m join tenants t on t.id = m.tenant_id
        where m.user_id = person.id and t.status = 'active'
        order by (t.id = waiting.agency_id) desc nulls last, m.last_used_at desc nulls last, t.id limit 1;

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
      elsif most_notices <= (select count(*) from account_mails m where m.user_id = person.id and m.address is null
        and m.sent_at > now() - interval '1 day') and waiting.address is null then
        refusal := 'notices';
      end if;
      if refusal is not null then
        delete from account_mails m where m.id = mail;
      end if;
      return query select waiting.kind, coalesce(waiting.address, person.email), person.name, home.id, home.name, home.slug,
        home.locale, waiting.link_id, now() + life, waiting.attempts, waiting.revision,
        coalesce(waiting.detail, '{}') || coalesce(waiting.asked_by - 'id', '{}'), waiting.asked_at, refusal;
    end $body$;

    -- How an attempt ended: sent, dropped for a reason, or to be tried again after some time.
    create function settle_account_mail(mail uuid, of_revision integer, outcome text, reason text, pause interval) returns void
      language sql volatile security definer
    begin atomic
      update account_mails m set
        sent_at = case when outcome = 'sent' then now() end,
        dropped_at = case when outcome = 'dropped' then now() end,
        due_at = case when outcome = 'postponed' then now() + pause else m.due_at end,
        last_error = reason
      where m.id = mail and m.revision = of_revision;
    end;

    -- Mails live for 30 days, because limits count them. A request that no process took up for a day is forgotten.
    create function sweep_account_mails(batch integer) returns bigint
      language sql volatile security definer
    begin atomic
      with old as (
        delete from account_mails where id in (
          select m.id from account_mails m where m.created_at < now() - interval '30 days' limit batch for update skip locked)
        returning 1
      ), forgotten as (
        delete from account_mails where id in (
          select m.id from account_mails m
          where m.due_at < now() - interval '1 day' and m.user_id is null and m.sent_at is null and m.dropped_at is null
            and m.created_at >= now() - interval '30 days'
          limit batch for update skip locked)
        returning 1
      ), dead as (
        delete from account_links where id in (
          select l.id from account_links l where l.expires_at < now() - interval '1 day' limit batch for update skip locked)
        returning 1
      )
      select greatest((select count(*) from old), (select count(*) from forgotten), (select count(*) from dead));
    end;

    -- == the operator =================================================================================================

    -- Disables or enables a person, or ends all their sessions. Returns how many of those things it changed. Each of the person's
    -- agencies sees it in its audit log, without an actor.
    create function operate_account(person uuid, act text, token_life interval) returns bigint
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    declare
      agency uuid;
      over record;
      changed bigint := 0;
    begin
      if act = 'sign_out' then
        for agency in select m.tenant_id from memberships m where m.user_id = person order by m.tenant_id loop
          select e.ended, e.state into over from end_sessions(agency, person, null) e;
          continue when not found;
          insert into revocations (tenant_id, kind, subject, state, expires_at)
            values (agency, 'sessions', person, over.state, now() + token_life);
          changed := changed + over.ended;
        end loop;
        insert into audit_events (tenant_id, action, actor_id, target_id, detail)
          select m.tenant_id, 'user.signed_out', null, person, '{"by": "operator"}' from memberships m where m.user_id = person;
        return changed;
      end if;
      update users u set disabled_at = case when act = 'disable' then now() end, version = u.version + 1, updated_at = now()
        where u.id = person and (u.disabled_at is null) = (act = 'disable');
      get diagnostics changed = row_count;
      insert into audit_events (tenant_id, action, actor_id, target_id, detail)
        select m.tenant_id, case when act = 'disable' then 'user.disabled' else 'user.enabled' end, null, person,
          '{"by": "operator"}'
        from memberships m where m.user_id = person and changed > 0;
      return changed;
    end $body$;

    -- What is left of somebody whose account ends. A trigger, because a cascade would skip row security.
    create function forget_account() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from account_links l where l.user_id = old.id;
      -- what was mailed stays counted for the mailbox
      update account_mails m set user_id = null
        where m.user_id = old.id and m.kind = 'change_to' and (m.sent_at is not null or m.dropped_at is not null);
      delete from account_mails m where m.user_id = old.id;
      return old;
    end $body$;

    -- As before, and the links of whoever is disabled or enabled are gone for good.
    create or replace function publish_disabled() returns trigger
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      delete from account_links l where l.user_id = new.id;
      delete from revocations r using memberships m
        where m.user_id = new.id and r.tenant_id = m.tenant_id and r.kind = 'member' and r.subject = new.id;
      insert into revocations (tenant_id, kind, subject, state, expires_at)
        select m.tenant_id, 'member', new.id,
          case when new.disabled_at is null then m.role end,
          now() + case when new.disabled_at is null then interval '1 day' else interval '3660 days' end
        from memberships m where m.user_id = new.id;
      return null;
    end $body$;

    -- As before, and mails that ask whether somebody has an address count like invitations: whoever asks for a change of their
    -- address causes one. What depends on who has an address does not count here, because whoever is refused would learn it.
    create or replace function mail_allowance(mailbox text, to_mailbox integer, mailbox_window interval,
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
        select c.created_at into oldest from (
            select o.created_at from outbox o where o.sender_id = me and o.created_at > clock_timestamp() - life
            union all
            select a.created_at from account_mails a
              where a.sender_id = me and a.kind = 'change_to' and a.created_at > clock_timestamp() - life
          ) c order by c.created_at desc offset most - 1 limit 1;
        if found then
          return query select case when verified then 'sender' else 'unverified_sender' end, seconds_until(oldest + life);
          return;
        end if;
      end if;
      if to_mailbox > 0 then
        select c.created_at into oldest from (
            select o.created_at from outbox o
              where o.mailbox = mail_allowance.mailbox and o.created_at > clock_timestamp() - mailbox_window
            union all
            select a.created_at from account_mails a
              where a.mailbox = mail_allowance.mailbox and a.kind = 'change_to'
                and a.created_at > clock_timestamp() - mailbox_window
          ) c order by c.created_at desc offset to_mailbox - 1 limit 1;
        if found then
          return query select 'recipient', seconds_until(oldest + mailbox_window);
        end if;
      end if;
    end $body$;

    do $$
    declare
      signature text;
    begin
      foreach signature in array array['request_password_reset(text, text, uuid, jsonb)', 'request_verification(text, uuid)',
        'request_email_change(text, text, text, uuid, interval)', 'queue_notice(text, jsonb)',
        'notice_new_device(uuid, uuid, boolean)', 'find_account_link(uuid, text)', 'use_account_link(uuid, text)',
        'confirm_email_change(uuid, text)', 'record_my_event(text, jsonb)', 'claim_account_mail(text[], integer, interval)',
        'prepare_account_mail(uuid, integer, interval, integer, interval, interval)',
        'settle_account_mail(uuid, integer, text, text, interval)', 'sweep_account_mails(integer)',
        'operate_account(uuid, text, interval)'] loop
        execute format('revoke all on function %s from public', signature);
        execute format('grant execute on function %s to aggios_app', signature);
      end loop;
    end $$;
    revoke all on function forget_account(), drop_account_mail(uuid) from public;
    -- a trigger is made by the owner of its table
    grant execute on function forget_account() to aggios_owner;
    reset role;
    revoke create on schema public from aggios_directory;

    create trigger forget_account before delete on users for each row execute function forget_account();
  `.execute(db)
}

import { type Kysely, sql } from 'kysely'

/**
 * Sessions that are bound to a key of the client (DPoP, RFC 9449): their tokens are of use only together with a proof that
 * the key has signed.
 *
 * The version before knows no keys, and would renew such a session for whoever has its refresh token. It never gets so far:
 * the tokens of these sessions have a form that it does not know (src/auth/refresh-tokens.ts, plugins/auth/tokens.ts). It
 * goes on to open and to renew sessions without a key.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    -- The SHA-256 of the public key (RFC 7638) in base64url; null: whoever has the tokens may use them. The check holds for
    -- all rows, because the column is new; to prove it would stop sign-ins meanwhile.
    alter table sessions add column key_thumbprint text collate "C",
      add constraint sessions_key_thumbprint check (key_thumbprint ~ '^[A-Za-z0-9_-]{43}$') not valid;
    grant update (key_thumbprint) on sessions to aggios_app;

    -- The key is set by the transaction that opens the session, and never again.
    create function keep_key_thumbprint() returns trigger
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    begin
      if old.key_thumbprint is not null or old.created_at <> now() then
        raise exception 'the key of a session cannot change';
      end if;
      return new;
    end $body$;
    revoke all on function keep_key_thumbprint() from public;
    create trigger keep_key_thumbprint before update of key_thumbprint on sessions
      for each row when (old.key_thumbprint is distinct from new.key_thumbprint) execute function keep_key_thumbprint();

    -- As with six parameters, and the session is bound to a key if there is one.
    create function open_session(member uuid, life interval, token_life interval, authenticated timestamptz, factor_used timestamptz,
        provider uuid, key_thumbprint text) returns uuid
      language plpgsql volatile set search_path = public, pg_temp
    as $body$
    #variable_conflict use_column
    declare
      opened constant uuid := open_session(member, life, token_life, authenticated, factor_used, provider);
    begin
      if open_session.key_thumbprint is not null then
        update sessions s set key_thumbprint = open_session.key_thumbprint
          where s.tenant_id = current_tenant_id() and s.id = opened;
      end if;
      return opened;
    end $body$;
    revoke all on function open_session(uuid, interval, interval, timestamptz, timestamptz, uuid, text) from public;
    grant execute on function open_session(uuid, interval, interval, timestamptz, timestamptz, uuid, text) to aggios_app;

    -- == the directory ================================================================================================

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- As my_sessions, with the keys. The version before goes on to call that one.
    create function my_sessions_with_keys(idle_life interval)
      returns table (id uuid, tenant_id uuid, tenant_slug text, user_agent text, ip inet, created_at timestamptz,
        last_used_at timestamptz, expires_at timestamptz, key_thumbprint text)
      language sql stable security definer rows 10
    begin atomic
      select m.id, m.tenant_id, m.tenant_slug, m.user_agent, m.ip, m.created_at, m.last_used_at, m.expires_at, s.key_thumbprint
      from my_sessions(idle_life) m join sessions s on s.tenant_id = m.tenant_id and s.id = m.id;
    end;
    revoke all on function my_sessions_with_keys(interval) from public;
    grant execute on function my_sessions_with_keys(interval) to aggios_app;

    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

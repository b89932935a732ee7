import { type Kysely, sql } from 'kysely'

/**
 * A sign-in code that is used again ends the session that its first use opened: somebody else may have it.
 *
 * The mark that makes a code good once keeps that session. Where a second factor comes in between, the session is opened later, by a
 * token with the id of the code; it is not opened when the code was used again meanwhile.
 *
 * The version before marks codes without a session, and gives tokens ids of their own. Nothing more happens with these.
 */
export async function up(db: Kysely<unknown>): Promise<void> {
  await sql`
    alter table one_time_marks add column session_id uuid, add column replayed boolean not null default false;

    grant create on schema public to aggios_directory;
    set role aggios_directory;

    -- Notes which session was opened by what was marked. False when that was used again meanwhile: the session must not stay.
    create function note_session_of_mark(mark uuid, session uuid) returns boolean
      language plpgsql volatile security definer set search_path = public, pg_temp
    as $body$
    begin
      update one_time_marks m set session_id = session where m.id = mark and not m.replayed;
      return found or not exists (select from one_time_marks m where m.id = mark);
    end $body$;

    -- Notes that what was marked is used again. Returns the session that it has opened, or null. No row when it was not used.
    create function replay_mark(mark uuid) returns table (session_id uuid)
      language sql volatile security definer rows 1
    begin atomic
      update one_time_marks m set replayed = true where m.id = mark returning m.session_id;
    end;

    revoke all on function note_session_of_mark(uuid, uuid), replay_mark(uuid) from public;
    grant execute on function note_session_of_mark(uuid, uuid), replay_mark(uuid) to aggios_app;
    reset role;
    revoke create on schema public from aggios_directory;
  `.execute(db)
}

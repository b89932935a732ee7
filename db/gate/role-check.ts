import type pg from 'pg'

/** Whoever could skip row security by this connection must not serve over it. */
export class UnsafeRole extends Error {}

/**
 * Throws UnsafeRole when the connection's role owns tables, or may become somebody who skips row security; and where triggers are
 * switched off for it, which is the one thing that it can't switch on again itself.
 */
export async function refuseUnsafeRole(connection: Pick<pg.ClientBase, 'query'>, setting: string): Promise<void> {
  const { rows } = await connection.query<{ name: string; unsafe: boolean; triggers: string }>(`
    select current_user as name, bool_or(
      r.rolsuper or r.rolbypassrls or r.rolcreaterole
      or exists (select from pg_class c where c.relowner = r.oid and c.relnamespace = 'public'::regnamespace)
    ) as unsafe, current_setting('session_replication_role') as triggers
    from pg_roles r where pg_has_role(current_user, r.oid, 'member')`)
  if (rows[0]?.unsafe) {
    throw new UnsafeRole(
      `${setting} connects as ${rows[0].name}, which owns tables or skips row security: use aggios_app`
    )
  }
  if (rows[0]?.triggers !== 'origin') {
    throw new UnsafeRole(
      `${setting} connects with session_replication_role = ${rows[0]?.triggers}: no trigger would run`
    )
  }
}

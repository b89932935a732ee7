import type pg from 'pg'

/** The database role could bypass row security, so the server must not use it. */
export class UnsafeRole extends Error {}

/**
 * Throws UnsafeRole when the connection's role owns tables or can switch to a role that bypasses row security. Also throws
 * when triggers are disabled for the role (`session_replication_role`): the role has no right to enable them again itself.
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

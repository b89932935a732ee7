import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'

/** Sets the gate's user's avatar, or removes it. Resolves to the address of the one before. */
export async function setAvatar(
  trx: TenantTransaction,
  userId: string,
  url: string | null
): Promise<string | null | undefined> {
  const { rows } = await sql<{ avatar_url: string | null }>`
    with before as (select avatar_url from users where id = ${userId} for no key update)
    update users u set avatar_url = ${url}, version = version + 1, updated_at = now() from before
    where u.id = ${userId} returning before.avatar_url`.execute(trx)
  return rows[0]?.avatar_url
}

/** The same for the logo of the gate's tenant. */
export async function setLogo(
  trx: TenantTransaction,
  tenantId: string,
  url: string | null
): Promise<string | null | undefined> {
  const { rows } = await sql<{ logo_url: string | null }>`
    with before as (select logo_url from tenants where id = ${tenantId} for no key update)
    update tenants t set logo_url = ${url}, version = version + 1, updated_at = now() from before
    where t.id = ${tenantId} returning before.logo_url`.execute(trx)
  return rows[0]?.logo_url
}

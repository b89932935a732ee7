import { sql } from 'kysely'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { imagePath } from '../../src/files/store/keys.ts'

/*
 * Callers name an image by its id. The columns hold the path that clients see, which ends with the 36 characters of the
 * id.
 */

/** Sets the avatar of the current user, or removes it. Resolves to the id of the previous image. */
export async function setAvatar(
  trx: TenantTransaction,
  userId: string,
  imageId: string | null
): Promise<string | null | undefined> {
  const url = imageId === null ? null : imagePath(userId, imageId)
  const { rows } = await sql<{ previous_id: string | null }>`
    with before as (select avatar_url from users where id = ${userId} for no key update)
    update users u set avatar_url = ${url}, version = version + 1, updated_at = now() from before
    where u.id = ${userId} returning right(before.avatar_url, 36) as previous_id`.execute(trx)
  return rows[0]?.previous_id
}

/** Sets the logo of the current tenant, or removes it. Resolves to the id of the previous image. */
export async function setLogo(
  trx: TenantTransaction,
  tenantId: string,
  imageId: string | null
): Promise<string | null | undefined> {
  const url = imageId === null ? null : imagePath(tenantId, imageId)
  const { rows } = await sql<{ previous_id: string | null }>`
    with before as (select logo_url from tenants where id = ${tenantId} for no key update)
    update tenants t set logo_url = ${url}, version = version + 1, updated_at = now() from before
    where t.id = ${tenantId} returning right(before.logo_url, 36) as previous_id`.execute(trx)
  return rows[0]?.previous_id
}

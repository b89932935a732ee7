/** The query of all peers: the row of `GET /api/v1/users/me` by its key, as in the product. */
export const userText = `
  select u.id, u.email, u.name, u.avatar_url, u.email_verified_at is not null as email_verified,
    u.mfa_enabled_at is not null as mfa_enabled, m.tenant_id, m.role,
    u.created_at, greatest(u.updated_at, m.updated_at) as updated_at
  from memberships m join users u on u.id = m.user_id
  where m.tenant_id = $1 and m.user_id = $2`

export type UserKey = { tenant_id: string; user_id: string }

/** The query for `GET /api/v1/members`: the first 25 people of an agency. */
export const membersText = `
  select m.user_id, u.email, u.name, m.role, m.joined_at
  from memberships m join users u on u.id = m.user_id
  where m.tenant_id = $1 order by m.user_id limit 25`

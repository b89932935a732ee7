import { addMember, post, type Tenant, type TestApp, type Tokens } from './harness.ts'

export type Method = 'DELETE' | 'GET' | 'HEAD' | 'OPTIONS' | 'PATCH' | 'POST' | 'PUT'

/** The path that shows the agency of the request. */
export const here = '/api/v1/tenant'
export const production = {
  NODE_ENV: 'production',
  BASE_DOMAIN: 'aggios.app',
  JWT_SECRET: 'x6Jr2mQ9wLk4tZb7VhN1sYc8Ge3Df5Pa',
  PASSWORD_PEPPER: 'Qw8Zx2Lm5Tn9Rb4Kc7Hv1Jf6Gd3Sp0Ya'
}

export const patch = (url: string, payload: unknown, headers = {}) =>
  ({ method: 'PATCH', url, payload: payload as object, headers }) as const

/** Makes the owner of one agency a member of another. Resolves to tokens for that agency. */
export async function visit(app: TestApp, guest: Tenant, host: Tenant, role: string): Promise<Tokens> {
  await addMember(app, host, guest.owner.id, role)
  const reply = await guest.send(post('/auth/switch', { tenant: host.slug }))
  if (reply.statusCode !== 200) throw new Error(`switch: ${reply.statusCode} ${reply.body}`)
  return reply.json()
}

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { myCredentials } from '../../db/queries/directory.ts'
import { storedHash } from '../../src/auth/passwords.ts'
import { invalidCredentials, sessionRevoked } from '../../src/http/problems.ts'

/**
 * Checks the person's password before a sensitive change, because a stolen token must not be enough for it. Attempts
 * count like attempts to sign in. Resolves to the address and the version of the password that was checked.
 *
 * Throws `invalid_credentials`.
 */
export async function requirePassword(
  app: FastifyInstance,
  request: FastifyRequest,
  reply: FastifyReply,
  password: string
) {
  const [credentials] = await request.tenantQuery(myCredentials, {})
  if (!credentials) throw sessionRevoked()
  const account = await app.accounts.find(request, reply, credentials.email)
  if (!(await app.passwords.verify(password, storedHash(credentials), request.fairnessKey))) {
    await app.accounts.failed(request, credentials.email)
    throw invalidCredentials()
  }
  await app.accounts.succeeded(request, account)
  return { email: credentials.email, password_version: credentials.password_version }
}

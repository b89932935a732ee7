import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { myCredentials } from '../../db/queries/directory.ts'
import { storedHash } from '../../src/auth/passwords.ts'
import { invalidCredentials, sessionRevoked } from '../../src/http/problems.ts'

declare module 'fastify' {
  interface FastifyInstance {
    credentials: {
      /**
       * Checks the password of the signed-in person before a sensitive change, because a stolen token must not be
       * enough for it. Attempts count like attempts to sign in. Resolves to the address and the version of the password
       * that was checked.
       *
       * Throws `invalid_credentials`.
       */
      requirePassword(
        request: FastifyRequest,
        reply: FastifyReply,
        password: string
      ): Promise<{ email: string; password_version: number }>
    }
  }
}

/** Checks the password of somebody who is signed in. */
export default fp(
  async (app) => {
    app.decorate('credentials', {
      async requirePassword(request: FastifyRequest, reply: FastifyReply, password: string) {
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
    })
  },
  { name: 'credentials', dependencies: ['accounts', 'database', 'passwords'] }
)

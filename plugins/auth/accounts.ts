import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { systemScope } from '../../db/gate/gate-query.ts'
import {
  type AccountRow,
  countFailure,
  findAccount,
  forgetFailures,
  type Identity,
  isKnownNetwork
} from '../../db/queries/directory.ts'
import { rateLimited } from '../../src/http/problems.ts'

export type Account = { email: string; failures: number; identity: Identity | undefined }

declare module 'fastify' {
  interface FastifyInstance {
    /**
     * The failed attempts of accounts. All routes that check a password use these, so that an account has one count.
     */
    accounts: {
      /**
       * Finds the account of an e-mail address. `identity` is undefined when nobody has the address; the check of the
       * password must take the same time then.
       *
       * Throws `rate_limited` when there were too many attempts lately. Throws it also after too many wrong passwords
       * in a row, unless the request comes from a known network, or `proven` says that the caller has proven to own the
       * mailbox of a person whose address is not verified.
       */
      find(
        request: FastifyRequest,
        reply: FastifyReply,
        email: string,
        options?: { proven?: boolean }
      ): Promise<Account>
      /**
       * Counts a request for a mail about an account, whoever has the address. Such requests have a count of their own,
       * so that they keep nobody from signing in. Throws `rate_limited`.
       */
      countRequest(request: FastifyRequest, reply: FastifyReply, email: string): Promise<void>
      /**
       * Counts a failed attempt. Await it before the reply, so that the attempt is counted when the client knows of the
       * failure.
       */
      failed(request: FastifyRequest, email: string): Promise<void>
      /** Resets the count after a correct password. */
      succeeded(request: FastifyRequest, account: Account): Promise<void>
    }
  }
}

/** After so many wrong passwords in a row, only networks where the account was used before may try. */
const maxFailures = 100
const retryAfterSeconds = 3600

/**
 * Limits the guessing of one account's password without locking out its owner: a network from which the person has
 * opened a session within 90 days may always try. The counts and the networks are in the database, so they survive
 * restarts and are the same for all processes.
 *
 * A successful sign-in writes nothing here unless there are failures to reset.
 */
export default fp(
  async (app) => {
    const limited = app.config.rateLimitAuth.max > 0
    let refused = 0

    const isKnown = (request: FastifyRequest, email: string) => async () => {
      const { address } = request
      if (address === undefined) return false
      const [answer] = await request.tenantQuery(isKnownNetwork, { email, address }, systemScope)
      return answer?.known ?? false
    }

    app.decorate('accounts', {
      async find(request: FastifyRequest, reply: FastifyReply, email: string, { proven = false } = {}) {
        const known = isKnown(request, email)
        await app.attempts.countAccount(request, reply, email, known)
        const [account] = await request.tenantQuery(findAccount, { email }, systemScope)
        const { failures, ...row } = account as AccountRow
        const identity = isIdentity(row) ? row : undefined
        const passes = proven && identity?.email_verified_at === null
        if (limited && failures >= maxFailures && !passes && !(await known())) {
          refused++
          const detail = 'too many wrong passwords in a row: sign in from a network where this account was used before'
          throw rateLimited({ detail, headers: { 'retry-after': String(retryAfterSeconds) } })
        }
        return { email, failures, identity }
      },
      countRequest: (request: FastifyRequest, reply: FastifyReply, email: string) =>
        app.attempts.countAccount(request, reply, `mail ${email}`, isKnown(request, email)),
      async failed(request: FastifyRequest, email: string) {
        await request.tenantQuery(countFailure, { email }, systemScope)
      },
      async succeeded(request: FastifyRequest, { email, failures }: Account) {
        if (failures > 0) await request.tenantQuery(forgetFailures, { email }, systemScope)
      }
    })
    app.metrics.counter(
      'aggios_accounts_refused_total',
      'Attempts refused because of too many wrong passwords in a row',
      () => refused
    )
  },
  { name: 'accounts', dependencies: ['addresses', 'attempts', 'database', 'metrics'] }
)

const isIdentity = (row: { id: string | null }): row is Identity => row.id !== null

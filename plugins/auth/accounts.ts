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
    /** Every place that checks a password goes through these: an account has one count, wherever it is guessed at. */
    accounts: {
      /**
       * What a password is checked against; without an `identity` nobody has the address, which must cost as much. Throws
       * `rate_limited` when there were too many attempts lately, or too many wrong ones ever, from elsewhere than a known network.
       * `proven`: an identity whose address is not verified is let through whatever its wrong attempts, because the caller has
       * shown that the mailbox is theirs.
       */
      find(
        request: FastifyRequest,
        reply: FastifyReply,
        email: string,
        options?: { proven?: boolean }
      ): Promise<Account>
      /** The attempt failed. Written before the client hears of it. */
      failed(request: FastifyRequest, email: string): Promise<void>
      /** It was the right one: wrong ones are counted from none again. */
      succeeded(request: FastifyRequest, account: Account): Promise<void>
    }
  }
}

/** Wrong passwords in a row, after which only networks that the account is known from may try. */
const maxFailures = 100
const retryAfterSeconds = 3600

/**
 * Slows guessing at one account without locking its owner out: whatever strangers try, a network from which the person has opened a
 * session within 90 days still may. The database knows both, so a restart forgets nothing and all processes agree.
 *
 * A sign-in that succeeds writes nothing of this unless there is something to forget.
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

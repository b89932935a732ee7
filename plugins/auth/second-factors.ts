import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { v4 as randomUuid } from 'uuid'
import type { Scope } from '../../db/gate/gate-query.ts'
import { requireKeysInUse } from '../../db/queries/keys-in-use.ts'
import {
  countFactorFailure,
  type FactorKind,
  type FactorProof,
  type FactorRow,
  factorKeysInUse,
  factorsOf,
  myFactors
} from '../../db/queries/sign-in/second-factors.ts'
import { createMfaTokens, type MfaSubject, type MfaTokens } from '../../src/auth/mfa-tokens.ts'
import {
  createFactorSecret,
  findStep,
  hasDigest,
  isTimeCode,
  presentSecret,
  recoveryDigest,
  withoutBlanks
} from '../../src/auth/one-time-codes.ts'
import { createStoredSecrets, type SealedSecret } from '../../src/auth/stored-secrets.ts'
import { invalidCredentials, mfaRequired, type Problem } from '../../src/http/problems.ts'
import { createKeyRing } from '../../src/keys.ts'
import type { Account } from './accounts.ts'

/** A person whose code is to be checked, in the scope of the statements. */
type Person = Scope & {
  user_id: string
  /**
   * False: wrong codes are not counted in a row. For sign-ins through an agency's own provider, because the agency decides
   * what its provider says, and must not use up the codes of its members. Such a sign-in is good in that agency only.
   */
  counts?: boolean
}
/** A stored factor. */
export type Factor = FactorRow & { id: string }
export type NewFactor = { stored: SealedSecret & { id: string }; shown: { secret: string; uri: string } }
export type CheckedCode = { proof: FactorProof; account: Account }

declare module 'fastify' {
  interface FastifyInstance {
    mfaTokens: MfaTokens
    secondFactors: {
      /** Creates a secret, to store until it is confirmed and to show once. */
      create(userId: string, email: string): NewFactor
      /** Reads the person with their factor. Default: the signed-in person. */
      find(request: FastifyRequest, person?: Person): Promise<FactorRow | undefined>
      /**
       * Checks a code of a factor without using it up: `useFactor` or `enableFactor` does, in the transaction of what
       * the code is for. Attempts count for the account like wrong passwords.
       *
       * Throws `rate_limited`, and `invalid_credentials` for a code that is wrong or was used before.
       */
      check(
        request: FastifyRequest,
        reply: FastifyReply,
        person: Person,
        factor: Factor,
        code: string
      ): Promise<CheckedCode>
      /** Counts a code that another request used first, and returns the problem to throw. */
      refuse(request: FastifyRequest, email: string): Promise<Problem>
      /**
       * The problem of a sign-in whose password was right and that has no factor yet. Its document has a token to go on
       * with, and names the `factors` that the person has. With a key only that key can go on.
       */
      demand(
        outcome: 'mfa_required' | 'enrollment_required',
        subject: MfaSubject & { key_thumbprint: string | null },
        factors?: readonly FactorKind[]
      ): Problem
    }
  }
}

/**
 * After so many wrong codes of an app in a row only a recovery code is accepted. It bounds the guessing of the six
 * digits from every network, also from those where the account was used before. Only somebody who knows the password, or
 * is signed in, can get so far, so strangers can't lock anybody out.
 */
export const maxWrongCodes = 100

/**
 * Checks one-time codes and recovery codes. Refuses to start when a stored secret needs a key that is not configured.
 */
export default fp(
  async (app) => {
    const make = (peppers: readonly string[]) => createStoredSecrets(peppers, 'second factor')

    const requireKeys = (peppers: readonly string[]) =>
      requireKeysInUse(app.gate, factorKeysInUse, make(peppers).has, 'stored second factors')

    await requireKeys(app.config.passwordPepper)
    app.secrets.follow(['passwordPepper'], async ({ passwordPepper }) => {
      await requireKeys(passwordPepper)
      return () => {}
    })
    const secrets = app.secrets.following('passwordPepper', make)

    function proofOf(userId: string, factor: Factor, code: string): FactorProof | undefined {
      const { id } = factor
      if (!isTimeCode(code)) {
        const recovery = recoveryDigest(userId, code)
        const known = factorsOf(factor).length > 0 && hasDigest(factor.recovery_codes, recovery)
        return known ? { id, step: null, recovery, renewed: null } : undefined
      }
      const secret = secrets.open(userId, factor)
      const step = secret && findStep(secret, code)
      if (!secret || step === undefined || step <= factor.last_step) return undefined
      const renewed = factor.key_id === secrets.first ? null : secrets.seal(userId, secret)
      return { id, step, recovery: null, renewed }
    }

    app.decorate(
      'mfaTokens',
      app.secrets.following('jwtSecret', (values) => createMfaTokens(createKeyRing(values, 'mfa token')))
    )
    app.decorate('secondFactors', {
      create(userId: string, email: string) {
        const secret = createFactorSecret()
        return {
          stored: { id: randomUuid(), ...secrets.seal(userId, secret) },
          shown: presentSecret(secret, email)
        }
      },
      async find(request: FastifyRequest, person?: Person) {
        const [row] = await request.tenantQuery(myFactors, {}, person)
        return row
      },
      async check(request: FastifyRequest, reply: FastifyReply, person: Person, factor: Factor, given: string) {
        const code = withoutBlanks(given)
        const { email, failures, id } = factor
        const account = await app.accounts.find(request, reply, email)
        const spent = failures >= maxWrongCodes && isTimeCode(code)
        const proof = spent ? undefined : proofOf(person.user_id, factor, code)
        if (proof) return { proof, account }
        await app.accounts.failed(request, email)
        if (spent) {
          throw invalidCredentials({ detail: 'too many wrong codes in a row: only a recovery code is accepted' })
        }
        if (person.counts !== false) await request.tenantQuery(countFactorFailure, { id }, person)
        throw invalidCredentials()
      },
      async refuse(request: FastifyRequest, email: string) {
        await app.accounts.failed(request, email)
        return invalidCredentials()
      },
      demand(
        outcome: 'mfa_required' | 'enrollment_required',
        subject: MfaSubject & { key_thumbprint: string | null },
        factors: readonly FactorKind[] = []
      ) {
        if (outcome === 'mfa_required') {
          return mfaRequired({ extensions: { mfa_token: app.mfaTokens.issue('sign_in', subject), factors } })
        }
        return mfaRequired({
          detail: 'this agency demands a second factor, and you have none yet',
          extensions: { mfa_token: app.mfaTokens.issue('enrollment', subject), enroll: true }
        })
      }
    })
  },
  { name: 'second-factors', dependencies: ['accounts', 'config', 'database'] }
)

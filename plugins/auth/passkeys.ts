import type { FastifyReply, FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { v7 as uuidv7 } from 'uuid'
import { systemScope } from '../../db/gate/gate-query.ts'
import {
  findPasskey,
  myPasskeys,
  type NewPasskey,
  type PasskeyOwner,
  type PasskeyProof,
  type StoredPasskey
} from '../../db/queries/sign-in/passkeys.ts'
import {
  type AssertionAnswer,
  type CreationOptions,
  creationOptions,
  type RegistrationAnswer,
  type RequestOptions,
  readClientData,
  requestOptions,
  verifyAssertion,
  verifyRegistration
} from '../../src/auth/passkeys/ceremonies.ts'
import {
  type Challenge,
  type ChallengePurpose,
  type ChallengeSubject,
  createPasskeyChallenges
} from '../../src/auth/passkeys/challenges.ts'
import { createPasskeyOrigins } from '../../src/auth/passkeys/origins.ts'
import { invalidChallenge, invalidCredentials, invalidPasskey } from '../../src/http/problems.ts'
import { createKeyRing } from '../../src/keys.ts'
import type { TenantEntry } from '../tenancy/tenants.ts'
import type { Account } from './accounts.ts'

/** Somebody who has said who they are otherwise: by a token. */
type Person = { tenant_id: string; user_id: string }
/**
 * The person who makes a passkey, and what the challenge belongs to: the session, or the token of a sign-in. With `id` the
 * challenge has that id, so that both are used up together.
 */
export type Registrant = Person & { context: string; id?: string }
export type CheckedPasskey = { proof: PasskeyProof; account: Account }
/** An answer whose challenge is one of this server. `origin` is true when the signature is. */
export type Answer = { challenge: Challenge; text: string; origin: string; body: AssertionAnswer }

declare module 'fastify' {
  interface FastifyInstance {
    passkeys: {
      /** What a browser needs to make a passkey for the person. */
      offerRegistration(
        request: FastifyRequest,
        registrant: Registrant,
        shown: { email: string; name: string }
      ): Promise<CreationOptions>
      /**
       * Checks a passkey that the person has made. `addPasskey` stores it and uses its challenge up. Throws
       * `invalid_challenge` and `invalid_passkey`.
       */
      checkRegistration(registrant: Registrant, name: string, answer: RegistrationAnswer): Promise<NewPasskey>
      /** What a browser needs to ask for a passkey. Without a person any passkey of the domain will do. */
      offerAssertion(
        request: FastifyRequest,
        purpose: ChallengePurpose,
        subject: ChallengeSubject,
        person?: Person
      ): Promise<RequestOptions>
      /**
       * Checks a passkey of a person without using the challenge up: `usePasskey` does, in the transaction of what the
       * passkey is for. Attempts count for the account like wrong passwords.
       *
       * Throws `rate_limited`, `invalid_challenge` unless the challenge was made for this purpose and subject, and
       * `invalid_credentials`.
       */
      check(
        request: FastifyRequest,
        reply: FastifyReply,
        person: Person & { email: string },
        expected: { purpose: ChallengePurpose; context: string },
        body: AssertionAnswer
      ): Promise<CheckedPasskey>
      /** Reads the answer of a sign-in. Throws `invalid_challenge`. */
      requireAnswer(body: AssertionAnswer, expected: ChallengeSubject & { purpose: ChallengePurpose }): Answer
      /** Finds the passkey of an answer, with its person. */
      findOwner(request: FastifyRequest, answer: Answer): Promise<PasskeyOwner | undefined>
      /** Verifies an answer for a session in this tenant. Undefined when anything is wrong. */
      prove(
        tenant: TenantEntry | undefined,
        owner: StoredPasskey & { user_id: string },
        answer: Answer
      ): Promise<PasskeyProof | undefined>
    }
  }
}

/** Asks for passkeys (WebAuthn), and checks what browsers and apps answer. */
export default fp(
  async (app) => {
    const challenges = app.secrets.following('jwtSecret', (secrets) =>
      createPasskeyChallenges(createKeyRing(secrets, 'passkey challenge'))
    )
    const origins = createPasskeyOrigins(app.config)

    /** Where each page has a domain of its own, in development, it is that of the page that asks. */
    function rpIdOf(request: FastifyRequest): string {
      return origins.rpIdOf(request.headers.origin ?? request.origin)
    }

    function readAnswer(clientDataJSON: string, expected: ChallengeSubject & { purpose: ChallengePurpose }) {
      const data = readClientData(clientDataJSON)
      const challenge = data && challenges.verify(data.challenge)
      const fits =
        challenge?.purpose === expected.purpose &&
        challenge.user_id === expected.user_id &&
        challenge.context === expected.context &&
        (expected.id === undefined || challenge.id === expected.id)
      if (!data || !fits) throw invalidChallenge()
      return { challenge, text: data.challenge, origin: data.origin }
    }

    async function prove(
      tenant: TenantEntry | undefined,
      owner: StoredPasskey & { user_id: string },
      { origin, text, challenge, body }: Answer
    ): Promise<PasskeyProof | undefined> {
      if (!tenant || !origins.isAllowed(origin, tenant)) return undefined
      const expected = { challenge: text, origin, rpId: origins.rpIdOf(origin) }
      const verified = await verifyAssertion(body, owner, expected)
      return verified && { ...verified, passkey_id: owner.id, challenge_id: challenge.id }
    }

    app.decorate('passkeys', {
      async offerRegistration(
        request: FastifyRequest,
        { tenant_id, user_id, context, id }: Registrant,
        { email, name }: { email: string; name: string }
      ) {
        const existing = await request.tenantQuery(myPasskeys, {}, { tenant_id, user_id })
        const challenge = challenges.issue('registration', { user_id, context, ...(id !== undefined && { id }) })
        return creationOptions(rpIdOf(request), challenge, { user_id, email, name }, existing)
      },
      async checkRegistration({ tenant_id, ...subject }: Registrant, name: string, answer: RegistrationAnswer) {
        const expected = { purpose: 'registration', ...subject } as const
        const { challenge, text, origin } = readAnswer(answer.response.clientDataJSON, expected)
        const tenant = await app.tenants.findById(tenant_id)
        if (!tenant || !origins.isAllowed(origin, tenant)) throw invalidPasskey({ detail: foreignOrigin })
        const expectedData = { challenge: text, origin, rpId: origins.rpIdOf(origin) }
        const verified = await verifyRegistration(answer, expectedData)
        if (!verified) throw invalidPasskey()
        return { ...verified, id: uuidv7(), name, challenge_id: challenge.id }
      },
      async offerAssertion(
        request: FastifyRequest,
        purpose: ChallengePurpose,
        subject: ChallengeSubject,
        person?: Person
      ) {
        const mine = person ? await request.tenantQuery(myPasskeys, {}, person) : []
        return requestOptions(rpIdOf(request), challenges.issue(purpose, subject), mine)
      },
      async check(
        request: FastifyRequest,
        reply: FastifyReply,
        person: Person & { email: string },
        expected: { purpose: ChallengePurpose; context: string },
        body: AssertionAnswer
      ) {
        const { tenant_id, user_id, email } = person
        const account = await app.accounts.find(request, reply, email)
        const answer = { ...readAnswer(body.response.clientDataJSON, { ...expected, user_id }), body }
        const mine = await request.tenantQuery(myPasskeys, {}, { tenant_id, user_id })
        const passkey = mine.find(({ credential_id }) => credential_id.toString('base64url') === body.id)
        const tenant = await app.tenants.findById(tenant_id)
        const proof = passkey && (await prove(tenant, { ...passkey, user_id }, answer))
        if (proof) return { proof, account }
        await app.accounts.failed(request, email)
        throw invalidCredentials()
      },
      requireAnswer: (body: AssertionAnswer, expected: ChallengeSubject & { purpose: ChallengePurpose }) => ({
        ...readAnswer(body.response.clientDataJSON, expected),
        body
      }),
      async findOwner(request: FastifyRequest, { body }: Answer) {
        const credential_id = Buffer.from(body.id, 'base64url')
        const [owner] = await request.tenantQuery(findPasskey, { credential_id }, systemScope)
        return owner
      },
      prove
    })
  },
  { name: 'passkeys', dependencies: ['accounts', 'config', 'database', 'tenants'] }
)

const foreignOrigin = 'the page or app is none of this agency: see allowed_origins of its settings'

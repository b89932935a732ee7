import type { FastifyRequest } from 'fastify'
import fp from 'fastify-plugin'
import { requireKeysInUse } from '../../db/queries/keys-in-use.ts'
import {
  listProviders,
  type ProviderRow,
  providerKeysInUse,
  readProvider,
  resealProvider
} from '../../db/queries/sign-in/identity-providers.ts'
import { createOauthTokens, type OauthTokens } from '../../src/auth/oauth-flows.ts'
import { createGithubProtocol } from '../../src/auth/providers/github.ts'
import { createOpenIdProtocol } from '../../src/auth/providers/openid.ts'
import {
  type Challenge,
  type Profile,
  type Provider,
  ProviderFailure,
  providerTimeoutMs
} from '../../src/auth/providers/provider.ts'
import { createStoredSecrets, type SealedSecret } from '../../src/auth/stored-secrets.ts'
import { createHostLookup } from '../../src/http/host-lookups.ts'
import { createOutboundFetch, OutboundFailure } from '../../src/http/outbound-requests.ts'
import { Problem, providerError, providerTimeout } from '../../src/http/problems.ts'
import { isUuid } from '../../src/uuids.ts'

export type OfferedProvider = { id: string; name: string; kind: Provider['kind'] }
/** `required_provider` is the id of the one through which people have to come in. */
export type Offer = { data: OfferedProvider[]; required_provider: string | null }

declare module 'fastify' {
  interface FastifyInstance {
    oauth: OauthTokens
    providers: {
      /** The providers that a sign-in page of the tenant may offer. Without a tenant those for everybody. */
      offer(request: FastifyRequest, tenantId: string | undefined): Promise<Offer>
      /** Finds a provider by its key. Agencies have their own, which nobody else finds. */
      find(request: FastifyRequest, key: string, tenantId: string | null): Promise<Provider | undefined>
      /** The address at which the provider asks the person. Throws `provider_error` or `provider_timeout`. */
      authorizationUrl(request: FastifyRequest, provider: Provider, challenge: Challenge): Promise<URL>
      /** Reads who the person is that came back. Throws `provider_error` or `provider_timeout`. */
      redeem(
        request: FastifyRequest,
        provider: Provider,
        answer: URLSearchParams,
        challenge: Challenge
      ): Promise<Profile>
      /** Encrypts the secret of a provider. */
      seal(id: string, secret: string): SealedSecret
    }
  }
}

/**
 * The providers at which people may sign in: those of the settings, and those of agencies. Refuses to start when a stored
 * secret needs a key that is not configured.
 */
export default fp(
  async (app) => {
    const { config } = app
    const make = (peppers: readonly string[]) => createStoredSecrets(peppers, 'identity provider')

    const requireKeys = (peppers: readonly string[]) =>
      requireKeysInUse(app.gate, providerKeysInUse, make(peppers).has, 'secrets of identity providers')

    await requireKeys(config.passwordPepper)
    app.secrets.follow(['passwordPepper'], async ({ passwordPepper }) => {
      await requireKeys(passwordPepper)
      return () => {}
    })
    const secrets = app.secrets.following('passwordPepper', make)

    const development = config.nodeEnv === 'development'
    // a server of the operator may stand in a private network; what an owner of an agency names must not
    const operators = createOutboundFetch({ development, privateNetworks: true })
    const owners = createOutboundFetch({
      development,
      findAddresses: createHostLookup({ servers: config.dnsServers })
    })
    const protocols = {
      google: createOpenIdProtocol(operators, { development }),
      github: createGithubProtocol(operators, { development }),
      openid: createOpenIdProtocol(owners, { development })
    }
    const outcomes = { answered: 0, failed: 0, late: 0 }

    const standard = { email_claim: 'email', name_claim: 'name', trust_email: false, own: false }
    const shared: Provider[] = []
    // `config` has the secrets in force, so each step at a provider uses the newest one
    for (const { client_id, secret, ...facts } of [
      {
        kind: 'google',
        name: 'Google',
        issuer: config.googleIssuer,
        client_id: config.googleClientId,
        secret: 'googleClientSecret'
      },
      {
        kind: 'github',
        name: 'GitHub',
        issuer: config.githubUrl,
        client_id: config.githubClientId,
        secret: 'githubClientSecret'
      }
    ] as const) {
      if (!client_id || !config[secret]) continue
      shared.push({
        ...{ ...standard, ...facts, key: facts.kind, client_id },
        get client_secret() {
          return config[secret] as string
        }
      })
    }

    /** Reads the secret. One that is encrypted with an older key is encrypted anew, because the key is to be removed. */
    async function open(request: FastifyRequest, tenantId: string, row: ProviderRow): Promise<Provider> {
      const { id, name, issuer, client_id, email_claim, name_claim, trust_email } = row
      const secret = secrets.open(id, { secret: row.client_secret, key_id: row.key_id })
      if (!secret) throw new Error('the secret of an identity provider can not be read')
      if (row.key_id !== secrets.first) {
        const values = { tenant_id: tenantId, id, before: row.client_secret, ...secrets.seal(id, secret) }
        await request.tenantQuery(resealProvider, values, { tenant_id: tenantId, user_id: null })
      }
      const client_secret = secret.toString()
      const claims = { email_claim, name_claim, trust_email }
      return { key: id, kind: 'openid', name, issuer, client_id, client_secret, ...claims, own: true }
    }

    /** Runs one step at a provider, in bounded time. What the provider has sent is neither logged nor shown. */
    async function withProvider<T>(request: FastifyRequest, provider: Provider, work: Promise<T>): Promise<T> {
      let timer: NodeJS.Timeout | undefined
      const late = new Promise<never>((_, reject) => {
        timer = setTimeout(
          () => reject(new OutboundFailure('all requests together', { reason: 'timeout' })),
          providerTimeoutMs
        )
      })
      try {
        const result = await Promise.race([work, late])
        outcomes.answered++
        return result
      } catch (err) {
        if (err instanceof Problem) throw err
        const { timeout, reason } = describe(err)
        outcomes[timeout ? 'late' : 'failed']++
        request.log.warn({ provider: provider.key, reason }, 'an identity provider gave no usable answer')
        throw timeout ? providerTimeout() : providerError()
      } finally {
        clearTimeout(timer)
      }
    }

    app.decorate('oauth', app.secrets.following('jwtSecret', createOauthTokens))
    app.decorate('providers', {
      async offer(request: FastifyRequest, tenantId: string | undefined) {
        const scope = { tenant_id: tenantId ?? null, user_id: null }
        const own =
          tenantId === undefined ? [] : await request.tenantQuery(listProviders, { tenant_id: tenantId }, scope)
        const data = [
          ...shared.map(({ key, name, kind }) => ({ id: key, name, kind })),
          ...own.map(({ id, name }) => ({ id, name, kind: 'openid' as const }))
        ]
        return { data, required_provider: own.find(({ enforced }) => enforced)?.id ?? null }
      },
      async find(request: FastifyRequest, key: string, tenantId: string | null) {
        const global = shared.find((each) => each.key === key)
        if (global || tenantId === null || !isUuid(key)) return global
        const scope = { tenant_id: tenantId, user_id: null }
        const [row] = await request.tenantQuery(readProvider, { tenant_id: tenantId, id: key }, scope)
        return row && open(request, tenantId, row)
      },
      authorizationUrl: (request: FastifyRequest, provider: Provider, challenge: Challenge) =>
        withProvider(request, provider, protocols[provider.kind].authorizationUrl(provider, challenge)),
      redeem: (request: FastifyRequest, provider: Provider, answer: URLSearchParams, challenge: Challenge) =>
        withProvider(request, provider, protocols[provider.kind].redeem(provider, answer, challenge)),
      seal: (id: string, secret: string) => secrets.seal(id, Buffer.from(secret))
    })
    app.metrics.counter('aggios_provider_answers_total', 'Steps of sign-ins at identity providers', () =>
      Object.entries(outcomes).map(([result, value]) => ({ labels: { result }, value }))
    )
  },
  { name: 'providers', dependencies: ['config', 'database', 'metrics'] }
)

/** Why a step failed, without what the provider has sent: causes of other errors have whole answers. */
function describe(err: unknown): { timeout: boolean; reason: string } {
  for (let each = err, depth = 0; each instanceof Error && depth < 5; each = each.cause, depth++) {
    if (each instanceof OutboundFailure) {
      const { code } = (each.cause ?? {}) as { code?: unknown }
      return { timeout: each.timeout, reason: typeof code === 'string' ? `${each.message} (${code})` : each.message }
    }
    if (each instanceof ProviderFailure) return { timeout: false, reason: each.message }
    if (each.name === 'TimeoutError') return { timeout: true, reason: 'the answer took too long' }
  }
  const { code } = (err ?? {}) as { code?: unknown }
  return { timeout: false, reason: typeof code === 'string' ? code : 'unknown' }
}

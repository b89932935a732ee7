import type { TenantGate } from '../../../db/gate/gate.ts'
import { systemScope } from '../../../db/gate/gate-query.ts'
import { listAgencies } from '../../../db/queries/operations/operators.ts'
import { listProviders, resealProvider } from '../../../db/queries/sign-in/identity-providers.ts'
import { listWebhookSecrets, resealWebhook } from '../../../db/queries/webhooks/secrets.ts'
import { createGithubProtocol } from '../../auth/providers/github.ts'
import { createOpenIdProtocol } from '../../auth/providers/openid.ts'
import type { Provider } from '../../auth/providers/provider.ts'
import { createStoredSecrets } from '../../auth/stored-secrets.ts'
import { createWebhookSecrets } from '../../events/webhook-secrets.ts'
import { createOutboundFetch } from '../../http/outbound-requests.ts'
import { Refusal, tenantScope } from '../operator.ts'
import { newSecret, type Rotation } from './rotation.ts'
import { readGiven } from './s3.ts'
import { openSecretFile } from './secret-file.ts'

export const sharedProviders = ['google', 'github'] as const
export type SharedProvider = (typeof sharedProviders)[number]

const pageOfAgencies = 200
/** What a provider answers to a right secret with a wrong code (RFC 6749, 5.2; GitHub has words of its own). */
const secretIsRight = ['invalid_grant', 'bad_verification_code']

/**
 * Makes the servers use another client secret, which somebody has made at the provider beside the one in use. The provider is
 * asked first whether it knows the new one, and when it does not, nothing is changed.
 */
export async function rotateClientSecret(
  rotation: Rotation,
  kind: SharedProvider,
  secretFile: string
): Promise<string> {
  const { fleet, step } = rotation
  const file = openSecretFile(rotation.env, kind === 'google' ? 'GOOGLE_CLIENT_SECRET' : 'GITHUB_CLIENT_SECRET')
  const client_secret = readGiven(secretFile)
  if (client_secret !== file.read()) {
    await requireKnown(rotation, kind, client_secret)
    step('the provider knows the new secret')
    file.write(client_secret)
  }
  await fleet.waitFor(file.name, [client_secret])
  return `done: every process uses the new secret. Remove the old one at ${kind}`
}

/** Sends a code that nobody has issued: the provider looks at the secret first. */
async function requireKnown({ config }: Rotation, kind: SharedProvider, client_secret: string): Promise<void> {
  const development = config.nodeEnv === 'development'
  const fetch = createOutboundFetch({ development, privateNetworks: true })
  const { protocol, issuer, client_id } =
    kind === 'google'
      ? {
          protocol: createOpenIdProtocol(fetch, { development }),
          issuer: config.googleIssuer,
          client_id: config.googleClientId
        }
      : {
          protocol: createGithubProtocol(fetch, { development }),
          issuer: config.githubUrl,
          client_id: config.githubClientId
        }
  if (client_id === undefined) throw new Refusal(`${kind} is not configured`)
  const claims = { email_claim: 'email', name_claim: 'name', trust_email: false, own: false }
  const provider: Provider = { key: kind, kind, name: kind, issuer, client_id, client_secret, ...claims }
  const state = newSecret()
  const challenge = {
    redirect_uri: `${config.apiUrl}/api/v1/auth/oauth/${kind}/callback`,
    ...{ state, nonce: newSecret(), code_verifier: newSecret() }
  }
  const answer = await protocol
    .redeem(provider, new URLSearchParams({ code: 'a-code-that-nobody-has-issued', state }), challenge)
    .then(
      () => 'a sign-in with a code that it can not know',
      (err: { error?: string; message: string }) => err.error ?? err.message
    )
  if (!secretIsRight.includes(answer))
    throw new Refusal(`${kind} does not know the new secret, and nothing was changed: ${answer}`)
}

/**
 * Encrypts the secrets of agencies' providers and webhooks anew where another pepper than the first was used. Resolves to how
 * many rows that were.
 */
export async function reencryptAgencySecrets(gate: TenantGate, peppers: readonly string[]): Promise<number> {
  const secrets = createStoredSecrets(peppers, 'identity provider')
  const webhookSecrets = createWebhookSecrets(peppers)
  let changed = 0
  for (let after = ''; ; ) {
    const page = await gate.query(systemScope, listAgencies, { one: null, after, batch: pageOfAgencies })
    for (const { id: tenant_id } of page) {
      for (const row of await gate.query(tenantScope(tenant_id), listProviders, { tenant_id })) {
        if (row.key_id === secrets.first) continue
        const secret = secrets.open(row.id, { secret: row.client_secret, key_id: row.key_id })
        if (!secret) throw new Refusal(`the secret of the provider ${row.id} needs a pepper that is not in the list`)
        const values = { tenant_id, id: row.id, before: row.client_secret, ...secrets.seal(row.id, secret) }
        await gate.query(tenantScope(tenant_id), resealProvider, values)
        changed++
      }
      for (const row of await gate.query(tenantScope(tenant_id), listWebhookSecrets, { tenant_id })) {
        const sealed = webhookSecrets.reseal(row)
        if (!sealed) continue
        const values = { tenant_id, id: row.endpoint_id, before: row.secret, ...sealed }
        await gate.query(tenantScope(tenant_id), resealWebhook, values)
        changed++
      }
    }
    const last = page.at(-1)
    if (!last || page.length < pageOfAgencies) return changed
    after = last.slug
  }
}

export async function reencrypt({ config, fleet, step }: Rotation, gate: TenantGate): Promise<string> {
  // a process that does not know the first pepper yet could not read what is encrypted with it
  await fleet.waitFor('PASSWORD_PEPPER', config.passwordPepper)
  const count = await reencryptAgencySecrets(gate, config.passwordPepper)
  step(`the secrets of ${count} providers and webhooks of agencies were encrypted anew`)
  return 'done: all of them are encrypted with a key of the first pepper'
}

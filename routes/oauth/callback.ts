import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { v7 as uuidv7 } from 'uuid'
import { systemScope } from '../../db/gate/gate-query.ts'
import { useOnce } from '../../db/queries/sign-in/identities.ts'
import { type Flow, flowCookie, markSeconds } from '../../src/auth/oauth-flows.ts'
import { parseCookies, writeCookie } from '../../src/http/cookies.ts'
import { invalidOauthState, Problem, providerError, signInCancelled } from '../../src/http/problems.ts'
import { requireAcceptor } from './invited.ts'
import { admitPerson } from './people.ts'
import type { ProviderAnswer } from './schemas.ts'
import { callbackUrl } from './start.ts'

type CallbackRequest = FastifyRequest<{ Params: { provider: string }; Querystring: ProviderAnswer }>

/**
 * Takes the answer of a provider, and resolves to the address at which the person goes on: that of the client, with a
 * code, or with the code of a problem as `error`.
 *
 * The state binds the answer to the browser that began (by its cookie), to the provider (by the path, and by `iss` where
 * the provider sends it) and to the agency. Each flow is good once: of several callbacks one goes on, before anything is
 * asked of the provider. Throws `invalid_oauth_state` otherwise, because there is no address then that could be trusted.
 */
export async function finishAtProvider(
  app: FastifyInstance,
  request: CallbackRequest,
  reply: FastifyReply
): Promise<string> {
  const flow = findFlow(app, request)
  // a HEAD uses nothing up
  if (request.method === 'HEAD') return flow.redirect_to
  const secure = app.config.nodeEnv === 'production'
  reply.header('set-cookie', writeCookie(flowCookie(flow.state, { secure }), '', { seconds: 0, secure }))
  const [mark] = await request.tenantQuery(useOnce, { id: flow.id, seconds: markSeconds }, systemScope)
  if (!mark?.used) throw invalidOauthState()
  const url = new URL(flow.redirect_to)
  url.searchParams.delete('code')
  url.searchParams.delete('error')
  try {
    url.searchParams.set('code', await createCode(app, request, flow))
  } catch (err) {
    if (!(err instanceof Problem) || err.kind.code === 'internal_error') throw err
    url.searchParams.set('error', err.kind.code)
  }
  return url.href
}

/** The flow of this browser whose state came back. */
function findFlow(app: FastifyInstance, request: CallbackRequest): Flow {
  const { state } = request.query
  if (state === undefined) throw invalidOauthState()
  const name = flowCookie(state, { secure: app.config.nodeEnv === 'production' })
  const cookie = parseCookies(request.headers.cookie).get(name)
  if (cookie === undefined) throw invalidOauthState()
  const flow = app.oauth.flows.open(cookie)
  if (!flow || flow.state !== state || flow.provider !== request.params.provider) throw invalidOauthState()
  return flow
}

async function createCode(app: FastifyInstance, request: CallbackRequest, flow: Flow): Promise<string> {
  const { provider: key, code_challenge, tenant_id, link, invitation } = flow
  const provider = await app.providers.find(request, key, tenant_id)
  if (!provider) throw providerError()
  if (request.query.error !== undefined) {
    throw request.query.error === 'access_denied' ? signInCancelled() : providerError()
  }
  const answer = new URL(request.url, app.config.apiUrl).searchParams
  const profile = await app.providers.redeem(request, provider, answer, {
    ...flow,
    redirect_uri: callbackUrl(app, key)
  })
  const common = { id: uuidv7(), provider: key, code_challenge }
  if (link) {
    // the person is asked again: whoever opened the link of somebody else must not have their identity linked there
    const rest = { purpose: 'link', session: link, own: provider.own, profile } as const
    return app.oauth.codes.issue({ ...common, tenant_id: tenant_id as string, ...rest })
  }
  if (invitation && tenant_id !== null) {
    const { own } = provider
    await requireAcceptor(request, { provider: key, own, profile, invitation: { tenant_id, ...invitation } })
    // accepted when the client asks, which is the only one with the verifier
    return app.oauth.codes.issue({ ...common, tenant_id, purpose: 'invitation', invitation, own, profile })
  }
  const person = await admitPerson(app, request, { provider, profile, tenant_id })
  const provider_id = provider.own ? provider.key : null
  return app.oauth.codes.issue({ ...common, purpose: 'sign_in', provider_id, ...person })
}

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { systemScope } from '../../db/gate/gate-query.ts'
import { useOnce } from '../../db/queries/sign-in/identities.ts'
import { readTenant } from '../../db/queries/tenants.ts'
import {
  createFlow,
  type FlowRequest,
  flowCookie,
  flowCookiePrefix,
  flowSeconds,
  type Invited,
  markSeconds
} from '../../src/auth/oauth-flows.ts'
import type { Provider } from '../../src/auth/providers/provider.ts'
import { isAllowedRedirect } from '../../src/auth/redirects.ts'
import { parseCookies, writeCookie } from '../../src/http/cookies.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { invalidOauthState, notFound, tenantNotFound } from '../../src/http/problems.ts'
import { normalizeSlug } from '../../src/tenancy/slugs.ts'
import { requireInvitation } from './invited.ts'
import type { LinkTicket, SignInStart } from './schemas.ts'

type StartRequest = FastifyRequest<{ Params: { provider: string }; Querystring: SignInStart }>
type LinkRequest = FastifyRequest<{ Params: { provider: string }; Querystring: LinkTicket }>
type Tenant = NonNullable<FastifyRequest['tenant']>

/** Flows that one browser may have under way. The oldest one is given up. Its cookies must fit into the headers. */
const maxFlows = 4

/** The address at which a provider sends people back. Each provider has its own, so that answers can't be mixed up. */
export const callbackUrl = (app: FastifyInstance, provider: string) =>
  `${app.config.apiUrl}/api/v1/auth/oauth/${provider}/callback`

/**
 * Begins a sign-in. Providers know one address of this server, which is on the general host, so the cookie of the flow
 * belongs there too: a request to another host is sent there first, and is counted as an attempt only there.
 *
 * The token of an invitation goes no further than this server: the cookie has what it names, sealed.
 */
export async function startSignIn(app: FastifyInstance, request: StartRequest, reply: FastifyReply): Promise<string> {
  const { redirect_to, code_challenge } = request.query
  const elsewhere = request.tenant !== undefined || request.hostname !== new URL(app.config.apiUrl).hostname
  if (!elsewhere) await app.attempts.countAddress(request, reply)
  const named = await findTenant(app, request, request.query.tenant)
  const invited = await findInvited(app, request, named)
  const tenant = invited?.tenant ?? named
  const provider = await app.providers.find(request, request.params.provider, tenant?.id ?? null)
  if (!provider) throw notFound()
  requireRedirect(app, tenant, { target: redirect_to, path: '/query/redirect_to', confined: provider.own })
  if (elsewhere) {
    const url = new URL(`${app.config.apiUrl}/api/v1/auth/oauth/${provider.key}`)
    const { invitation } = request.query
    const values = {
      ...{ redirect_to, code_challenge, ...(tenant && { tenant: tenant.slug }) },
      ...(invitation !== undefined && { invitation })
    }
    for (const [name, value] of Object.entries(values)) url.searchParams.set(name, value)
    return url.href
  }
  const flow = {
    ...{ provider: provider.key, tenant_id: tenant?.id ?? null, redirect_to, code_challenge, link: null },
    ...(invited && { invitation: invited.invitation })
  }
  return begin(app, request, reply, provider, flow)
}

/** Begins to link an identity, with the ticket that a signed-in person has got. */
export async function startLinking(app: FastifyInstance, request: LinkRequest, reply: FastifyReply): Promise<string> {
  const ticket = app.oauth.tickets.open(request.query.ticket)
  if (!ticket || ticket.provider !== request.params.provider) throw invalidOauthState()
  const provider = await app.providers.find(request, ticket.provider, ticket.tenant_id)
  // programs that check links send a HEAD, which uses nothing up
  if (request.method === 'HEAD') return callbackUrl(app, ticket.provider)
  const [mark] = await request.tenantQuery(useOnce, { id: ticket.id, seconds: markSeconds }, systemScope)
  if (!mark?.used || !provider) throw invalidOauthState()
  const { id: _, ...flow } = ticket
  return begin(app, request, reply, provider, flow)
}

async function begin(
  app: FastifyInstance,
  request: FastifyRequest,
  reply: FastifyReply,
  provider: Provider,
  asked: FlowRequest
): Promise<string> {
  const flow = createFlow(asked)
  const redirect_uri = callbackUrl(app, provider.key)
  const url = await app.providers.authorizationUrl(request, provider, { ...flow, redirect_uri })
  const secure = app.config.nodeEnv === 'production'
  const surplus = surplusFlows(app, request.headers.cookie, secure)
  reply.header('set-cookie', [
    ...surplus.map((name) => writeCookie(name, '', { seconds: 0, secure })),
    writeCookie(flowCookie(flow.state, { secure }), app.oauth.flows.issue(flow), { seconds: flowSeconds, secure })
  ])
  return url.href
}

/** The cookies of flows that make room for a new one: those that are over, and the oldest. */
function surplusFlows(app: FastifyInstance, header: string | undefined, secure: boolean): string[] {
  return [...parseCookies(header)]
    .filter(([name]) => name.startsWith(flowCookiePrefix({ secure })))
    .map(([name, value]) => ({ name, begun_at: app.oauth.flows.open(value)?.begun_at ?? 0 }))
    .sort((a, b) => b.begun_at - a.begun_at)
    .filter(({ begun_at }, index) => begun_at === 0 || index >= maxFlows - 1)
    .map(({ name }) => name)
}

/** The agency of the host, or the one that is named. A suspended one is like an unknown one to strangers. */
export async function findTenant(
  app: FastifyInstance,
  request: FastifyRequest,
  slug: string | undefined
): Promise<Tenant | undefined> {
  if (request.tenant || slug === undefined) return request.tenant
  const found = await app.tenants.find(normalizeSlug(slug))
  if (found?.status !== 'active') throw tenantNotFound()
  return found
}

/**
 * The agency of the invitation that the client has named, if it has. Throws `not_found` for a token that is not one of this
 * server, or of another agency than the named one, and what `requireInvitation` throws: the person is not sent to a provider
 * for an invitation that can't be used.
 */
async function findInvited(
  app: FastifyInstance,
  request: StartRequest,
  named: Tenant | undefined
): Promise<{ tenant: Pick<Tenant, 'id' | 'slug' | 'settings'>; invitation: Invited } | undefined> {
  if (request.query.invitation === undefined) return undefined
  const token = app.oneTimeTokens.verify('invitation', request.query.invitation)
  if (!token || (named && named.id !== token.tenant_id)) throw notFound()
  await requireInvitation(request, token)
  const { tenant_id, ...invitation } = token
  const [tenant] = await request.tenantQuery(readTenant, { tenant_id }, { tenant_id, user_id: null })
  if (!tenant) throw notFound()
  return { tenant, invitation }
}

/**
 * Throws `validation_failed` for an address that sign-ins of the agency may not lead to. It is never redirected to.
 *
 * Whoever has the page that a sign-in leads to can get the session. `allowed_origins` are chosen by any admin of the
 * agency, so only sign-ins that are `confined` to the agency lead there: other sessions are good in all agencies.
 */
export function requireRedirect(
  app: FastifyInstance,
  tenant: Pick<Tenant, 'slug' | 'settings'> | undefined,
  { target, path, confined }: { target: string; path: string; confined: boolean }
): void {
  const { appUrl, corsOrigins, appRedirects, nodeEnv } = app.config
  const own = tenant ? [new URL(appUrl.replaceAll('{slug}', tenant.slug)).origin] : []
  const chosen = (confined && tenant?.settings.allowed_origins) || []
  const origins = [...own, ...chosen, ...corsOrigins].filter((origin) => origin !== '*')
  if (!isAllowedRedirect(target, { origins, appRedirects, development: nodeEnv === 'development' })) {
    throw invalidMembers([{ path, message: 'must be an address that sign-ins of this agency may lead to' }])
  }
}

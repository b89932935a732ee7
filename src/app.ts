import type { Socket } from 'node:net'
import Fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest, LogController } from 'fastify'
import { v4 as randomUuid } from 'uuid'
import accounts from '../plugins/auth/accounts.ts'
import apiKeys from '../plugins/auth/api-keys.ts'
import bearer from '../plugins/auth/bearer.ts'
import breachedPasswords from '../plugins/auth/breached-passwords.ts'
import credentials from '../plugins/auth/credentials.ts'
import deniedAttempts from '../plugins/auth/denied-attempts.ts'
import guard from '../plugins/auth/guard.ts'
import keyLookups from '../plugins/auth/key-lookups.ts'
import keyUses from '../plugins/auth/key-uses.ts'
import passkeys from '../plugins/auth/passkeys.ts'
import passwords from '../plugins/auth/passwords.ts'
import proofUses from '../plugins/auth/proof-uses.ts'
import proofs from '../plugins/auth/proofs.ts'
import providers from '../plugins/auth/providers.ts'
import revocations from '../plugins/auth/revocations.ts'
import secondFactors from '../plugins/auth/second-factors.ts'
import sessionReach from '../plugins/auth/session-reach.ts'
import spentProofs from '../plugins/auth/spent-proofs.ts'
import tokens from '../plugins/auth/tokens.ts'
import eventStreams from '../plugins/events/event-streams.ts'
import events from '../plugins/events/events.ts'
import webhookDeliveries from '../plugins/events/webhook-deliveries.ts'
import webhookSecrets from '../plugins/events/webhook-secrets.ts'
import decoders from '../plugins/files/decoders.ts'
import objects from '../plugins/files/objects.ts'
import addresses from '../plugins/http/addresses.ts'
import cors from '../plugins/http/cors.ts'
import errors from '../plugins/http/errors.ts'
import forms from '../plugins/http/forms.ts'
import headers, { defaultHeaders } from '../plugins/http/headers.ts'
import idempotency from '../plugins/http/idempotency.ts'
import mediaTypes from '../plugins/http/media-types.ts'
import methods from '../plugins/http/methods.ts'
import openapi from '../plugins/http/openapi.ts'
import requestBody from '../plugins/http/request-body.ts'
import serialization from '../plugins/http/serialization.ts'
import validation from '../plugins/http/validation.ts'
import accountMails from '../plugins/infrastructure/account-mails.ts'
import config from '../plugins/infrastructure/config.ts'
import database from '../plugins/infrastructure/database.ts'
import dns from '../plugins/infrastructure/dns.ts'
import mail from '../plugins/infrastructure/mail.ts'
import readMemory from '../plugins/infrastructure/read-memory.ts'
import redis from '../plugins/infrastructure/redis.ts'
import attempts from '../plugins/limits/attempts.ts'
import concurrency from '../plugins/limits/concurrency.ts'
import counters from '../plugins/limits/counters.ts'
import rates from '../plugins/limits/rates.ts'
import domainChecks from '../plugins/maintenance/domain-checks.ts'
import housekeeping from '../plugins/maintenance/housekeeping.ts'
import jobs from '../plugins/maintenance/jobs.ts'
import objectSweep from '../plugins/maintenance/object-sweep.ts'
import storeFence from '../plugins/maintenance/store-fence.ts'
import errorReports from '../plugins/observability/error-reports.ts'
import health from '../plugins/observability/health.ts'
import metrics from '../plugins/observability/metrics.ts'
import requestLog from '../plugins/observability/request-log.ts'
import signIns from '../plugins/observability/sign-ins.ts'
import upkeep from '../plugins/observability/upkeep.ts'
import hosts from '../plugins/tenancy/hosts.ts'
import tenantLookup from '../plugins/tenancy/tenant-lookup.ts'
import tenants from '../plugins/tenancy/tenants.ts'
import apiKeysRoutes from '../routes/api-keys/index.ts'
import auditEventsRoutes from '../routes/audit-events/index.ts'
import authRoutes from '../routes/auth/index.ts'
import authorizationServerRoutes from '../routes/authorization-server/index.ts'
import docsRoutes from '../routes/docs/index.ts'
import domainsRoutes from '../routes/domains/index.ts'
import enforcementRoutes from '../routes/enforcement/index.ts'
import eventsRoutes from '../routes/events/index.ts'
import filesRoutes from '../routes/files/index.ts'
import healthRoutes from '../routes/health/index.ts'
import identityProvidersRoutes from '../routes/identity-providers/index.ts'
import imagesRoutes from '../routes/images/index.ts'
import invitationsRoutes from '../routes/invitations/index.ts'
import membersRoutes from '../routes/members/index.ts'
import mfaRoutes from '../routes/mfa/index.ts'
import oauthRoutes from '../routes/oauth/index.ts'
import problemsRoutes from '../routes/problems/index.ts'
import tenantRoutes from '../routes/tenant/index.ts'
import tenantsRoutes from '../routes/tenants/index.ts'
import usersRoutes from '../routes/users/index.ts'
import webhooksRoutes from '../routes/webhooks/index.ts'
import type { Hasher } from './auth/hasher.ts'
import type { Config } from './config/config.ts'
import { createRangeTest } from './http/addresses.ts'
import { readRequestLine, requestId } from './http/incoming-requests.ts'
import { headersTooLarge, malformedRequest, type Problem, problemText, requestTimeout } from './http/problems.ts'
import { logging } from './observability/log-format.ts'
import { findPendingReply } from './processes/idle-connections.ts'

const bodyLimit = 64 * 1024
export const maxHeaderSize = 16_384

type BuildOptions = {
  /** Receives the lines of the log, in place of the standard output. */
  logStream?: { write(line: string): void }
  /** Hashes passwords, in place of a subprocess that is started for it. */
  hasher?: Hasher
}

/**
 * Builds the application. The plugins are registered in the order in which a request passes them. This function only
 * registers: await `ready()`. After a failed start the application can still be closed.
 */
export function buildApp(settings: Config, { logStream, hasher }: BuildOptions = {}): FastifyInstance {
  const app = Fastify({
    bodyLimit,
    ...logging(settings, logStream),
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'request_id' }),
    trustProxy: settings.trustProxy.length > 0 ? createRangeTest(settings.trustProxy) : false,
    genReqId: requestId,
    rewriteUrl: readRequestLine,
    routerOptions: { maxParamLength: 200, ignoreTrailingSlash: false, caseSensitive: true },
    // the timeout of a body depends on the route: plugins/http/request-body.ts
    requestTimeout: 0,
    connectionTimeout: 60_000,
    // the first read of a million revocations takes seconds, and longer when all processes start at once
    pluginTimeout: 60_000,
    // longer than load balancers keep idle connections
    keepAliveTimeout: 75_000,
    http: {
      headersTimeout: 15_000,
      connectionsCheckingInterval: 5_000,
      requireHostHeader: false,
      maxHeaderSize
    },
    forceCloseConnections: 'idle',
    return503OnClosing: false,
    frameworkErrors: refuseUrl,
    clientErrorHandler: refuseConnection
  })

  // an unknown Expect header is ignored; Node would answer 417
  app.server.on('checkExpectation', app.routing)

  app.register(config, { config: settings })
  app.register(addresses)
  app.register(metrics)
  // loaded only where it is on, with the packages of OpenTelemetry
  if (settings.otlpEndpoint ?? settings.sentryDsn) app.register(import('../plugins/observability/traces.ts'))
  app.register(signIns)
  app.register(errors)
  if (settings.sentryDsn) app.register(errorReports)
  app.register(validation)
  app.register(serialization)
  app.register(headers)
  app.register(requestBody)
  app.register(mediaTypes)
  app.register(forms)
  app.register(requestLog)
  app.register(redis)
  app.register(readMemory)
  app.register(database)
  app.register(jobs)
  app.register(objects)
  app.register(decoders)
  app.register(storeFence)
  app.register(idempotency)
  app.register(health)
  app.register(upkeep)
  app.register(revocations)
  app.register(tenants)
  app.register(tokens)
  app.register(apiKeys)
  app.register(keyUses)
  app.register(counters)
  app.register(proofUses)
  // these collect facts about a request
  app.register(bearer)
  app.register(proofs)
  app.register(hosts)
  app.register(rates)
  app.register(concurrency)
  app.register(tenantLookup)
  app.register(keyLookups)
  app.register(spentProofs)
  // these decide by the facts
  app.register(deniedAttempts)
  app.register(guard)
  app.register(sessionReach)
  app.register(attempts)
  app.register(methods)
  app.register(cors)
  app.register(passwords, hasher ? { hasher } : {})
  app.register(breachedPasswords)
  app.register(accounts)
  app.register(credentials)
  app.register(secondFactors)
  app.register(providers)
  app.register(passkeys)
  app.register(mail)
  app.register(accountMails)
  app.register(events)
  app.register(webhookSecrets)
  app.register(webhookDeliveries)
  app.register(eventStreams)
  app.register(housekeeping)
  app.register(dns)
  app.register(domainChecks)
  app.register(objectSweep)
  app.register(openapi)

  app.register(authorizationServerRoutes)
  app.register(
    async (api) => {
      api.register(healthRoutes, { prefix: '/health' })
      api.register(authRoutes, { prefix: '/auth' })
      api.register(usersRoutes, { prefix: '/users' })
      api.register(mfaRoutes)
      api.register(oauthRoutes)
      api.register(identityProvidersRoutes, { prefix: '/identity-providers' })
      api.register(tenantRoutes, { prefix: '/tenant' })
      api.register(tenantsRoutes, { prefix: '/tenants' })
      api.register(membersRoutes, { prefix: '/members' })
      api.register(invitationsRoutes, { prefix: '/invitations' })
      api.register(domainsRoutes, { prefix: '/domains' })
      api.register(apiKeysRoutes, { prefix: '/api-keys' })
      api.register(enforcementRoutes, { prefix: '/enforcement' })
      api.register(webhooksRoutes, { prefix: '/webhooks' })
      api.register(filesRoutes, { prefix: '/files' })
      api.register(imagesRoutes)
      api.register(eventsRoutes, { prefix: '/events' })
      api.register(auditEventsRoutes, { prefix: '/audit-events' })
      api.register(problemsRoutes, { prefix: '/problems' })
      api.register(docsRoutes)
    },
    { prefix: '/api/v1' }
  )
  return app
}

/** Answers a request whose URL the router refuses. No route matches, so no error handler is called. */
function refuseUrl(err: Error, request: FastifyRequest, reply: FastifyReply): void {
  request.log.debug({ err }, 'the URL could not be read')
  const problem = malformedRequest()
  request.server.metrics.unreadable(problem.kind.status)
  reply
    .code(problem.kind.status)
    .headers({ ...defaultHeaders, 'x-request-id': request.id })
    .type('application/problem+json; charset=utf-8')
    .send(problemText(problem, request.id))
}

/** Answers bytes that are not HTTP, and headers that are too large or arrive too slowly. There is no request yet. */
function refuseConnection(this: FastifyInstance, err: NodeJS.ErrnoException, socket: Socket): void {
  // an earlier request on this connection is still being answered: a reply here would be mixed up with that one
  const pending = findPendingReply(socket)
  if (err.code === 'ECONNRESET' || !socket.writable || pending?.headersSent || pending?.req.complete) {
    return void socket.destroy()
  }
  let problem: Problem = malformedRequest()
  if (err.code === 'HPE_HEADER_OVERFLOW') problem = headersTooLarge()
  // headers that arrived too slowly
  else if (err.code === 'ERR_HTTP_REQUEST_TIMEOUT') problem = requestTimeout()
  const { status, title } = problem.kind
  this.metrics.unreadable(status)
  const id = randomUuid()
  const body = problemText(problem, id)
  const headers = {
    ...defaultHeaders,
    'x-request-id': id,
    'content-type': 'application/problem+json; charset=utf-8',
    'content-length': Buffer.byteLength(body),
    connection: 'close'
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}`)
  socket.end(`HTTP/1.1 ${status} ${title}\r\n${lines.join('\r\n')}\r\n\r\n${body}`)
}

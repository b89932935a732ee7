import { permissions } from '../src/auth/api-keys/permissions.ts'
import {
  auditApart,
  beforeHandler,
  cacheOf,
  defect,
  existenceTold,
  header,
  keyLookupsThat,
  keysThat,
  lookupsWithoutAgency,
  type Mutant,
  memoryForAll,
  onArrival,
  revocationsThat,
  settingsThatStay,
  signature,
  tokensThatNeedNo,
  verifierThatTakes
} from './holes.ts'
import { seconds } from './tokens.ts'

/*
 * Holes that the product does not have. Each is made here, around the application or in its database; the product has
 * no switch for it. The isolation matrix or the checks of the catalogue must find every one.
 */

export const mutants: Mutant[] = [
  // host and token
  {
    title: 'host and token need not agree',
    hole: onArrival((request) => {
      if (request.tenant?.status === 'active') request.tenant = undefined
    }),
    only: ['updateTenant'],
    found: /X1 /
  },
  {
    title: 'X-Forwarded-Host is believed',
    hole: onArrival(async (request, app) => {
      const slug = header(request, 'x-forwarded-host')?.split('.')[0]
      if (slug !== undefined) request.tenant = await app.tenants.find(slug)
    }),
    only: ['getTenant'],
    found: /X11 x-forwarded-host/
  },
  {
    title: 'X-Tenant-Id is believed',
    hole: beforeHandler((request) => {
      request.user = { ...request.user, tenant_id: header(request, 'x-tenant-id') ?? request.user.tenant_id }
    }),
    only: ['listMembers'],
    found: /X11 x-tenant-id: shows/
  },

  // the proof of a key
  {
    title: 'a bound token is enough as a bearer token',
    hole: tokensThatNeedNo(({ scheme }) => scheme === 'Bearer'),
    only: ['getMe'],
    found: /D1/
  },
  {
    title: 'a bound token is enough without a proof',
    hole: tokensThatNeedNo((_, proof) => proof === undefined),
    only: ['getMe'],
    found: /D[12]/
  },
  {
    title: 'the proof of any key is enough',
    hole: tokensThatNeedNo(({ problem }, proof) => proof !== undefined && /another key/.test(problem?.message ?? '')),
    only: ['getMe'],
    found: /D3/
  },
  {
    title: 'a proof for any host is enough',
    hole: tokensThatNeedNo(({ problem }, proof) => proof !== undefined && /htu/.test(problem?.message ?? '')),
    only: ['getMe'],
    found: /D4/
  },
  {
    title: 'a proof needs no nonce',
    hole: tokensThatNeedNo(({ problem }) => problem?.kind.code === 'use_dpop_nonce'),
    only: ['getMe'],
    found: /D5/
  },

  // the token
  {
    title: 'the verifier takes HS512',
    hole: verifierThatTakes((token, { alg }, claims) =>
      alg === 'HS512' && token.endsWith(`.${signature(token, 'sha512')}`) ? claims : undefined
    ),
    only: ['getMe'],
    found: /N11/
  },
  {
    title: 'the verifier takes a token without a signature',
    hole: verifierThatTakes((token, { alg }, claims) => (alg === 'none' && token.endsWith('.') ? claims : undefined)),
    only: ['getMe'],
    found: /N10/
  },
  {
    title: 'the verifier does not look at the signature',
    hole: verifierThatTakes((token, { alg, kid, ...more }, claims) =>
      alg === 'HS256' && kid !== 'unknown-key' && !('crit' in more) && !token.endsWith(`.${signature(token, 'sha256')}`)
        ? claims
        : undefined
    ),
    only: ['getMe'],
    found: /N1[3467]/
  },
  {
    title: 'the verifier takes what another server issued',
    hole: verifierThatTakes((token, _, claims) =>
      claims.iss !== 'https://api.localhost' && token.endsWith(`.${signature(token, 'sha256')}`)
        ? { ...claims, iss: 'https://api.localhost' }
        : undefined
    ),
    only: ['getMe'],
    found: /N19/
  },
  {
    title: 'the verifier takes what has expired',
    hole: verifierThatTakes((token, _, claims) =>
      Number(claims.exp) < seconds() && token.endsWith(`.${signature(token, 'sha256')}`)
        ? { ...claims, exp: seconds() + 60 }
        : undefined
    ),
    only: ['getMe'],
    found: /N3/
  },

  // API keys
  {
    title: 'an API key needs no permission',
    hole: keysThat((key) => ({ ...key, permissions: new Set(permissions) })),
    only: ['listMembers'],
    found: /K[45]/
  },
  {
    title: 'an API key needs no role',
    hole: {
      before: (app) =>
        app.addHook('onRequest', async ({ bearer }) => {
          if (bearer?.claims?.key) bearer.claims.role = 'owner'
        })
    },
    only: ['listAuditEvents'],
    found: /K6/
  },
  {
    title: 'an API key may do what a person may',
    hole: keysThat(() => undefined),
    only: ['listMembers'],
    found: /K[45]/
  },
  {
    title: 'an API key may be used from everywhere',
    hole: keysThat((key) => ({ ...key, allowsFrom: undefined })),
    only: ['getTenant'],
    found: /K7/
  },
  {
    title: 'the secret of an API key does not matter',
    hole: keyLookupsThat('secret'),
    only: ['getTenant'],
    found: /K2/
  },
  { title: 'an API key that has expired goes on', hole: keyLookupsThat('expiry'), only: ['getTenant'], found: /K8/ },

  // revocation
  {
    title: 'a session that has ended goes on',
    hole: revocationsThat((find) => (claims) => find({ ...claims, sid: claims.jti })),
    only: ['getTenant'],
    found: /N5/
  },
  {
    title: 'who was removed goes on',
    hole: revocationsThat((find) => (claims) => {
      const problem = find(claims)
      return problem?.kind.code === 'session_revoked' && !find({ ...claims, user_id: claims.sid }) ? undefined : problem
    }),
    only: ['listMembers'],
    found: /N8/
  },
  {
    title: 'a role that was lowered goes on',
    hole: revocationsThat((find) => (claims) => {
      const problem = find(claims)
      return problem?.kind.code === 'token_expired' ? undefined : problem
    }),
    only: ['getTenant'],
    found: /N9/
  },
  {
    title: 'a suspended agency goes on',
    hole: revocationsThat((find) => (claims) => {
      const problem = find(claims)
      return problem?.kind.code === 'tenant_suspended' ? undefined : problem
    }),
    only: ['getTenant'],
    found: /N7 on the general host/
  },

  // roles
  (() => {
    const configs: { access?: string }[] = []
    return {
      title: 'one route asks for a lower role than it says',
      hole: {
        before: (app) =>
          app.addHook('onRoute', (route) => {
            route.config ??= {}
            if (route.method === 'PATCH' && route.url === '/api/v1/tenant') configs.push(route.config)
          }),
        // after the OpenAPI document was made
        after: () => {
          for (const config of configs) config.access = 'viewer'
        }
      },
      only: ['updateTenant'],
      found: /R (viewer|member)/
    } satisfies Mutant
  })(),
  {
    title: 'one route says a lower role, and asks for no more',
    hole: {
      before: (app) =>
        app.addHook('onRoute', (route) => {
          if (route.url === '/api/v1/audit-events/verify' && route.config) route.config.access = 'viewer'
        })
    },
    only: ['verifyAuditEvents'],
    found: /is for viewer by the document and for admin by the policy/
  },
  {
    title: 'a route is not in the document',
    hole: {
      before: (app) => {
        app.register(async (api) => {
          api.get(
            '/api/v1/forgotten',
            { config: { access: 'viewer', permission: 'never' }, schema: { hide: true } },
            () => 'x'
          )
        })
      }
    },
    only: ['getLiveness'],
    found: /GET \/api\/v1\/forgotten is hidden/
  },

  // requests and replies
  {
    title: 'a cursor may be carried into another list',
    hole: {
      after: ({ app }) => {
        app.cursors.require = (_, cursor) => {
          const position = Buffer.from(cursor ?? '', 'base64url')
            .subarray(16)
            .toString()
          return position === '' ? [] : JSON.parse(position)
        }
      }
    },
    only: ['listMembers'],
    found: /X8 the cursor of B/
  },
  {
    title: 'If-Match always matches',
    hole: onArrival(({ raw }) => {
      if (raw.headers['if-match'] !== undefined) raw.headers['if-match'] = '*'
    }),
    only: ['updateTenant'],
    found: /X7 the tag of B/
  },
  {
    title: 'replies are remembered by their address alone',
    hole: cacheOf((request) => (request.method === 'GET' && request.user ? request.url : undefined)),
    only: ['getTenant'],
    found: /R\+ owner: shows canary-b/
  },
  {
    title: 'what is remembered is looked up without its agency',
    hole: memoryForAll(),
    only: ['getTenant'],
    found: /R\+ owner: shows canary-b/
  },
  {
    title: 'replies are repeated by their key alone',
    hole: cacheOf((request) => header(request, 'idempotency-key')),
    only: ['createInvitation'],
    found: /X7 the key of B/
  },
  {
    title: 'a key for repetition is looked up without its tenant',
    hole: {
      plant: `alter table idempotency_keys rename to kept_keys;
        create view idempotency_keys as select current_tenant_id() as tenant_id, current_user_id() as user_id,
          route, key, fingerprint, status, headers, body, expires_at from kept_keys;
        grant select, insert, delete on idempotency_keys to aggios_app, aggios_directory`
    },
    only: ['createInvitation'],
    found: /X7 the key of B/,
    checks: ['C6']
  },
  {
    title: 'a body may say whose it is',
    hole: {
      before: (app) =>
        app.addHook('preValidation', (request, _reply, done) => {
          const body = request.body as { tenant_id?: string } | undefined
          if (request.user && body?.tenant_id !== undefined) {
            request.user = { ...request.user, tenant_id: body.tenant_id }
            delete body.tenant_id
          }
          done()
        })
    },
    only: ['updateTenant'],
    found: /X12 tenant_id/
  },
  {
    title: 'that an object of another agency is there is told',
    hole: existenceTold(),
    only: ['revokeInvitation'],
    found: /X4 id of B: 403|X4 id of B: .*forbidden/
  },
  {
    title: 'bytes are looked up by the id of their file alone',
    hole: lookupsWithoutAgency(),
    only: ['getFileContent'],
    found: /X4 id of B/
  },
  {
    title: 'a link is good on the host of any agency',
    hole: onArrival((request) => {
      if (request.tenant?.status === 'active' && request.url.includes('/files/links/')) request.tenant = undefined
    }),
    only: ['getLinkedFileContent'],
    found: /X6 the link of another agency on this one's host/
  },
  {
    title: 'a refusal says whose host it is',
    hole: {
      before: (app) =>
        app.addHook('onSend', async (request, reply, payload) => {
          if (reply.statusCode !== 403 || !request.tenant) return payload
          const body = { ...JSON.parse(String(payload)), detail: `This is ${request.tenant.slug}` }
          return JSON.stringify(body)
        })
    },
    only: ['getTenant'],
    found: /canonical|shows/
  },

  // the audit log, and the settings
  { title: 'the audit log is written apart from its change', hole: auditApart(), only: ['updateMe'], found: /K1/ },
  {
    title: 'what is denied is not recorded',
    hole: {
      after: ({ app }) => {
        const { query } = app.gate
        app.gate.query = async (settings, statement, values) =>
          statement.name === 'record_denial' ? [] : query(settings, statement, values)
      }
    },
    only: ['listAuditEvents'],
    found: /is recorded as denied 0 times/
  },
  {
    title: 'the settings of a request stay on its connection',
    ...settingsThatStay(),
    only: ['updateMe'],
    found: /a connection remembers whose it was/
  },

  // the database
  {
    title: 'row security is off on one table',
    hole: { plant: 'alter table invitations disable row level security' },
    only: ['revokeInvitation'],
    found: /X4 id of B/,
    checks: ['C1']
  },
  {
    title: 'one policy lets everything through',
    hole: { plant: 'create policy open on memberships using (true)' },
    only: ['removeMember'],
    found: /an admin removes an owner: 204/,
    checks: ['C4']
  },
  {
    title: 'a function of the directory forgets whose sessions are asked for',
    hole: {
      plant: `create or replace function my_sessions(idle_life interval)
          returns table (id uuid, tenant_id uuid, tenant_slug text, user_agent text, ip inet, created_at timestamptz,
            last_used_at timestamptz, expires_at timestamptz)
          language sql stable security definer rows 10
        begin atomic
          select s.id, s.tenant_id, t.slug, s.user_agent, s.ip, s.created_at, s.rotated_at, s.expires_at
          from sessions s join tenants t on t.id = s.tenant_id;
        end`
    },
    only: ['listMySessions'],
    found: /shows canary-/
  },
  {
    title: 'an address is unique among all agencies',
    hole: { plant: 'create unique index invited_once on invitations (email) where accepted_at is null' },
    only: ['createInvitation'],
    found: /an address that B has invited too/,
    checks: ['C9']
  },
  {
    title: 'a change that is remembered elsewhere is not noted',
    hole: { plant: 'drop trigger note_updates on users' },
    only: [],
    checks: ['C13']
  },
  { title: 'the owner of a table is exempt', hole: { plant: defect('C1', 2) }, only: [], checks: ['C1'] },
  { title: 'a key leads to other agencies', hole: { plant: defect('C8', 0) }, only: [], checks: ['C8'] },
  { title: 'a function runs with the rights of its owner', hole: { plant: defect('C7', 0) }, only: [], checks: ['C7'] },
  { title: 'a view belongs to the superuser', hole: { plant: defect('C12', 0) }, only: [], checks: ['C12'] }
]

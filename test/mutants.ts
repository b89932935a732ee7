import { createHmac } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import pg from 'pg'
import type { AccessClaims } from '../src/auth/claims.ts'
import { fileKey } from '../src/files/store/keys.ts'
import { forbidden } from '../src/http/problems.ts'
import { checks } from './catalogue.ts'
import { jwtSecret } from './harness.ts'
import type { Hole, World } from './isolation-world.ts'
import { decode, type Json, seconds } from './tokens.ts'

/*
 * Holes that the product does not have. Each is made here, around the application or in its database: there is no switch for one
 * in the product. The matrix or the database's catalogue must find every one of them.
 */

export type Mutant = {
  title: string
  hole: Hole
  /** The operations that are tried. None: the catalogue alone is asked. */
  only: string[]
  /** What the matrix says first. */
  found?: RegExp
  /** The checks of the catalogue that must find it too. */
  checks?: string[]
  /** Takes back what was changed outside of the application. */
  restore?: () => void
}

// == ways to make one ================================================================================================

/** Runs when the host is known, and before the guard. */
function onArrival(act: (request: FastifyRequest, app: FastifyInstance) => void | Promise<void>): Hole {
  return { before: (app) => app.addHook('onRequest', async (request) => act(request, app)) }
}

/** Runs between the guard and the handler. */
function beforeHandler(act: (request: FastifyRequest) => void): Hole {
  return {
    before: (app) =>
      app.addHook('preHandler', (request, _reply, done) => {
        if (request.user) act(request)
        done()
      })
  }
}

/** A verifier that takes what it should not. */
function verifierThatTakes(repair: (token: string, header: Json, claims: Json) => Json | undefined): Hole {
  return onArrival((request, app) => {
    const token = /^Bearer ([\w-]+\.[\w-]+\.[\w-]*)$/.exec(request.headers.authorization ?? '')?.[1]
    if (token === undefined) return
    const { header, claims } = decode(token)
    const repaired = repair(token, header, claims) as AccessClaims | undefined
    if (repaired) request.bearer = { claims: repaired, problem: app.revocations.find(repaired) }
  })
}

/** Changes the answer to whether a token is still to be believed. */
function revocationsThat(
  change: (find: FastifyInstance['revocations']['find']) => FastifyInstance['revocations']['find']
): Hole {
  return {
    after: ({ app }) => {
      app.revocations.find = change(app.revocations.find)
    }
  }
}

/** Sends again what it has sent before under the same key. */
function cacheOf(keyOf: (request: FastifyRequest) => string | undefined): Hole {
  const sent = new Map<string, string>()
  return {
    before: (app) => {
      app.addHook('preHandler', async (request, reply) => {
        const known = sent.get(keyOf(request) ?? '')
        if (known === undefined) return
        return reply
          .code(request.method === 'POST' ? 201 : 200)
          .type('application/json; charset=utf-8')
          .serializer(String)
          .send(known)
      })
      app.addHook('onSend', async (request, reply, payload) => {
        const key = keyOf(request)
        if (key !== undefined && reply.statusCode < 300 && typeof payload === 'string') sent.set(key, payload)
        return payload
      })
    }
  }
}

const header = (request: FastifyRequest, name: string): string | undefined => {
  const value = request.headers[name]
  return typeof value === 'string' ? value : undefined
}

const signature = (token: string, digest: string) =>
  createHmac(digest, jwtSecret)
    .update(token.slice(0, token.lastIndexOf('.')))
    .digest('base64url')

/** Both halves of a transaction's work, with the audit log written when the other half is over. */
function auditApart(): Hole {
  return {
    after: ({ app }) => {
      const transaction = app.gate.transaction
      app.gate.transaction = async (settings, work) => {
        const events: never[] = []
        const result = await transaction(settings, (trx) => {
          const around = new Proxy(trx, {
            get(target, name) {
              const value: unknown = Reflect.get(target, name)
              if (name === 'insertInto') {
                return (table: 'audit_events') =>
                  table === 'audit_events'
                    ? { values: (event: never) => ({ execute: async () => void events.push(event) }) }
                    : target.insertInto(table)
              }
              return typeof value === 'function' ? value.bind(target) : value
            }
          })
          return work(around)
        })
        for (const event of events) {
          await transaction(settings, (trx) => trx.insertInto('audit_events').values(event).execute())
        }
        return result
      }
    }
  }
}

/** Whether an object is there is asked without the walls, and told. */
function existenceTold(): Hole {
  let sql: pg.Client | undefined
  return {
    before: (app) =>
      app.addHook('preHandler', async (request) => {
        const { id } = (request.params ?? {}) as { id?: string }
        if (id === undefined || !request.user || !sql) return
        const { rows } = await sql.query('select tenant_id from invitations where id = $1', [id])
        if (rows[0] && rows[0].tenant_id !== request.user.tenant_id) throw forbidden()
      }),
    after: (world: World) => {
      sql = world.sql
    }
  }
}

/** A file is found by its id among those of all agencies, and so are its bytes. */
function lookupsWithoutAgency(): Hole {
  return {
    after: ({ app, sql }) => {
      const { query } = app.gate
      const find = async (text: string, id: string) => (await sql.query(text, [id])).rows
      app.gate.query = async (settings, statement, values) =>
        statement.name === 'read_file'
          ? find(
              `select id, name, purpose, content_type, size::float8 as size, encode(sha256, 'hex') as sha256, created_by, created_at
               from files where id = $1 and status = 'ready'`,
              (values as unknown as { id: string }).id
            )
          : query(settings, statement, values)
      const { get } = app.objects
      app.objects.get = async (key, range) => {
        const id = key.split('/').at(-1) as string
        const [file] = await find('select tenant_id from files where id = $1', id)
        return get(fileKey(file.tenant_id, id), range)
      }
    }
  }
}

/** The settings of the gate outlive their transaction: every connection keeps the last one's. */
function settingsThatStay(): Pick<Mutant, 'hole' | 'restore'> {
  const prototype = pg.Client.prototype as unknown as { query: (...args: unknown[]) => unknown }
  const { query } = prototype
  const stay = (text: string) => (text.includes("set_config('app.") ? text.replaceAll(', true)', ', false)') : text)
  return {
    hole: {
      before: () => {
        prototype.query = function (this: unknown, first: unknown, ...rest: unknown[]) {
          if (typeof first === 'string') return query.call(this, stay(first), ...rest)
          const { text } = first as { text?: unknown }
          // a query that sends itself has a text too, and settings of its own
          if (typeof text === 'string' && Object.getPrototypeOf(first) === Object.prototype) {
            return query.call(this, { ...(first as object), text: stay(text) }, ...rest)
          }
          return query.call(this, first, ...rest)
        }
      }
    },
    restore: () => {
      prototype.query = query
    }
  }
}

const defect = (id: string, number: number): string => {
  const found = checks.find((check) => check.id === id)?.defects[number]
  if (!found) throw new Error(`the catalogue has no defect ${number} of ${id}`)
  return found.as === 'postgres' ? found.plant : `set role aggios_owner; ${found.plant}; reset role`
}

// == the holes =======================================================================================================

export const mutants: Mutant[] = [
  // the wall of the host
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

  // what was taken back
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
        // the document is made by now
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
          api.get('/api/v1/forgotten', { config: { access: 'viewer' }, schema: { hide: true } }, () => 'x')
        })
      }
    },
    only: ['getLiveness'],
    found: /GET \/api\/v1\/forgotten is hidden/
  },

  // what is asked for, and what comes back
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
        grant select, insert, delete on idempotency_keys to aggios_app`
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
  { title: 'the owner of a table is exempt', hole: { plant: defect('C1', 2) }, only: [], checks: ['C1'] },
  { title: 'a key leads to other agencies', hole: { plant: defect('C8', 0) }, only: [], checks: ['C8'] },
  { title: 'a function runs with the rights of its owner', hole: { plant: defect('C7', 0) }, only: [], checks: ['C7'] },
  { title: 'a view belongs to the superuser', hole: { plant: defect('C12', 0) }, only: [], checks: ['C12'] }
]

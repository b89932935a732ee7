import { createHmac } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import pg from 'pg'
import type { KeyReach } from '../src/auth/api-keys/key-reach.ts'
import type { AccessClaims } from '../src/auth/claims.ts'
import { fileKey } from '../src/files/store/keys.ts'
import { forbidden } from '../src/http/problems.ts'
import { nilUuid } from '../src/uuids.ts'
import { checks } from './catalogue-checks.ts'
import { jwtSecret } from './harness.ts'
import type { Hole, World } from './isolation-world.ts'
import { decode, type Json } from './tokens.ts'

/*
 * Functions that break one part of the isolation, for test/mutants.ts.
 */

export type Mutant = {
  title: string
  hole: Hole
  /** The operations that the matrix tries. If there are none, only the checks of the catalogue run. */
  only: string[]
  /** The first failure that the matrix must report. */
  found?: RegExp
  /** The checks of the catalogue that must find it too. */
  checks?: string[]
  /** Undoes changes outside of the application. */
  restore?: () => void
}

/** Runs `act` when the host is known, before the guard. */
export function onArrival(act: (request: FastifyRequest, app: FastifyInstance) => void | Promise<void>): Hole {
  return { before: (app) => app.addHook('onRequest', async (request) => act(request, app)) }
}

/** Runs `act` between the guard and the handler. */
export function beforeHandler(act: (request: FastifyRequest) => void): Hole {
  return {
    before: (app) =>
      app.addHook('preHandler', (request, _reply, done) => {
        if (request.user) act(request)
        done()
      })
  }
}

/** Accepts tokens that the verifier must refuse. */
export function verifierThatTakes(repair: (token: string, header: Json, claims: Json) => Json | undefined): Hole {
  return onArrival((request, app) => {
    const token = /^Bearer ([\w-]+\.[\w-]+\.[\w-]*)$/.exec(request.headers.authorization ?? '')?.[1]
    if (token === undefined) return
    const { header, claims } = decode(token)
    const repaired = repair(token, header, claims) as AccessClaims | undefined
    if (repaired) request.bearer = { scheme: 'Bearer', claims: repaired, problem: app.revocations.find(repaired) }
  })
}

/** Accepts tokens that are bound to a key although their proof must be refused. */
export function tokensThatNeedNo(
  accepts: (bearer: NonNullable<FastifyRequest['bearer']>, proof: unknown) => boolean
): Hole {
  return onArrival(({ bearer, headers }) => {
    if (bearer?.claims?.cnf && bearer.problem && accepts(bearer, headers.dpop)) bearer.problem = undefined
  })
}

/** Changes what is known of an API key, or of its token, before the guard decides. */
export function keysThat(change: (key: KeyReach) => KeyReach | undefined): Hole {
  return onArrival((request) => {
    const { bearer } = request
    if (!bearer?.claims?.key) return
    const { key, ...person } = bearer.claims
    const changed = change(key)
    request.bearer = { ...bearer, claims: { ...person, ...(changed && { key: changed }) } }
  })
}

/** Finds an API key by its id, whatever its secret is, or however old it is. */
export function keyLookupsThat(ignore: 'secret' | 'expiry'): Hole {
  return {
    after: ({ app, sql }) => {
      const { query } = app.gate
      app.gate.query = async (settings, statement, values) => {
        if (statement.name !== 'find_api_key') return query(settings, statement, values)
        const { id, digest } = values as unknown as { id: string; digest: Buffer }
        const { rows } = await sql.query(
          `select k.role, k.permissions, k.cidrs::text[] as cidrs, k.sid, t.status,
             case when $3 then null else extract(epoch from k.expires_at - now())::float8 end as seconds_left
           from api_keys k join tenants t on t.id = k.tenant_id where k.id = $1 and ($4 or k.secret_hash = $2)`,
          [id, digest, ignore === 'expiry', ignore === 'secret']
        )
        return rows
      }
    }
  }
}

/** Changes the answer to whether a token is revoked. */
export function revocationsThat(
  change: (find: FastifyInstance['revocations']['find']) => FastifyInstance['revocations']['find']
): Hole {
  return {
    after: ({ app }) => {
      app.revocations.find = change(app.revocations.find)
    }
  }
}

/** Answers a request with the reply to an earlier request that had the same key. */
export function cacheOf(keyOf: (request: FastifyRequest) => string | undefined): Hole {
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

export const header = (request: FastifyRequest, name: string): string | undefined => {
  const value = request.headers[name]
  return typeof value === 'string' ? value : undefined
}

export const signature = (token: string, digest: string) =>
  createHmac(digest, jwtSecret)
    .update(token.slice(0, token.lastIndexOf('.')))
    .digest('base64url')

/** Writes the audit event outside of the transaction that makes the change. */
export function auditApart(): Hole {
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

/** Answers differently if an object exists in another agency. */
export function existenceTold(): Hole {
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

/** Finds a file, and its bytes, by its id among those of all agencies. */
export function lookupsWithoutAgency(): Hole {
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

/** Remembers reads without the agency and the person that they are for. */
export function memoryForAll(): Hole {
  return {
    after: ({ app }) => {
      const { read } = app.readMemory
      const anybody = { tenant_id: nilUuid, user_id: nilUuid }
      app.readMemory.read = (request, asked, ask) =>
        read(request, { ...asked, scope: anybody, values: { ...asked.values, ...anybody } }, ask)
    }
  }
}

/** Makes the settings of the gate outlive their transaction: a connection keeps those of the last request. */
export function settingsThatStay(): Pick<Mutant, 'hole' | 'restore'> {
  const prototype = pg.Client.prototype as unknown as { query: (...args: unknown[]) => unknown }
  const { query } = prototype
  const stay = (text: string) => (text.includes("set_config('app.") ? text.replaceAll(', true)', ', false)') : text)
  return {
    hole: {
      before: () => {
        prototype.query = function (this: unknown, first: unknown, ...rest: unknown[]) {
          if (typeof first === 'string') return query.call(this, stay(first), ...rest)
          const { text } = first as { text?: unknown }
          // a query object with its own `submit` has a text too; it is left alone
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

export const defect = (id: string, number: number): string => {
  const found = checks.find((check) => check.id === id)?.defects[number]
  if (!found) throw new Error(`the catalogue has no defect ${number} of ${id}`)
  return found.as === 'postgres' ? found.plant : `set role aggios_owner; ${found.plant}; reset role`
}

import { createHmac, createSecretKey, type KeyObject, timingSafeEqual } from 'node:crypto'
import jwt from '@fastify/jwt'
import { TypeCompiler } from '@sinclair/typebox/compiler'
import Fastify from 'fastify'
import fp from 'fastify-plugin'
import { v4 as randomUuid } from 'uuid'
import { keyReach, keyTokenSeconds } from '../../src/auth/api-keys/key-reach.ts'
import { isPermission, type Permission } from '../../src/auth/api-keys/permissions.ts'
import { AccessClaims, KeyTokenClaims, type TokenSubject } from '../../src/auth/claims.ts'
import { createRefreshTokens, type RefreshToken } from '../../src/auth/refresh-tokens.ts'
import { clockToleranceSeconds } from '../../src/auth/token-life.ts'
import { withoutStacks } from '../../src/expected-error.ts'
import { invalidToken, tokenExpired } from '../../src/http/problems.ts'
import { createKeyRing } from '../../src/keys.ts'

/** The claims of an API key, which a token is issued for, and the permissions of the key that it is to have. */
export type KeyTokenSubject = { claims: AccessClaims; permissions: readonly Permission[] }

export type TokenReply = {
  access_token: string
  refresh_token: string
  token_type: 'Bearer' | 'DPoP'
  expires_in: number
}

declare module '@fastify/jwt' {
  interface FastifyJWT {
    namespaces: string
    user: AccessClaims
  }
}

declare module 'fastify' {
  interface FastifyInstance {
    tokens: {
      /** The `iss` of all tokens. */
      readonly issuer: string
      /**
       * Issues an access token, and the refresh token with this counter of the session. Of a session with a key, both are
       * of use only with a proof of that key.
       */
      issue(subject: TokenSubject, counter: number): TokenReply
      /** Issues an access token for an API key. It ends with the key, and is of no use where the key is not. */
      issueForKey(subject: KeyTokenSubject): { access_token: string; expires_in: number }
      /**
       * Verifies an access token and returns its claims, also those of a token of an API key. Does not check revocation. Throws `invalid_token`, and
       * `token_expired` unless expired tokens are accepted.
       */
      verify(token: string, options: { expired: 'refused' | 'accepted' }): AccessClaims
      /** Verifies a refresh token and returns its content. Undefined when this server has not issued it. */
      verifyRefresh(token: string): RefreshToken | undefined
    }
  }
}

const maxTokenLength = 4096
const unboundType = 'at+jwt'
/** Of a token that needs a proof. It has a type of its own, because an older version would accept it without a proof. */
const boundType = 'dpop-at+jwt'
/** Of a token that an API key has got. An older version, which knows no permissions, must refuse it. */
const keyType = 'key-at+jwt'
const types: readonly unknown[] = [unboundType, boundType, keyType]

/** Signs and verifies access tokens (JWT, HS256, RFC 9068) and refresh tokens with the keys of one key ring. */
export default fp(
  async (app) => {
    const { accessTokenTtl, baseDomain } = app.config
    const issuer = `https://api.${baseDomain}`
    const claimsSchema = TypeCompiler.Compile(AccessClaims)
    const keyClaimsSchema = TypeCompiler.Compile(KeyTokenClaims)
    const keyTokenLife = Math.min(keyTokenSeconds, accessTokenTtl)
    const verifyOptions = {
      algorithms: ['HS256' as const],
      allowedIss: issuer,
      allowedAud: baseDomain,
      requiredClaims: AccessClaims.required as string[],
      cache: false
    }
    const verifyKeyOptions = { ...verifyOptions, requiredClaims: KeyTokenClaims.required as string[] }

    /** Makes the signers and verifiers of the keys. The package belongs to an instance of its own, as keys change later. */
    async function open(secrets: readonly string[]) {
      const keys = createKeyRing(secrets, 'access token')
      const holder = Fastify()
      for (const { id, secret } of keys.byId.values()) {
        for (const [namespace, typ, verify] of [
          [id, unboundType, verifyOptions],
          [boundName(id), boundType, verifyOptions],
          [keyName(id), keyType, verifyKeyOptions]
        ] as const) {
          const sign = { algorithm: 'HS256' as const, kid: id, header: { alg: 'HS256', typ } }
          await holder.register(jwt, { namespace, secret, sign, verify })
        }
      }
      const each = holder.jwt
      const signerIn = (name: string) => each[name] as NonNullable<(typeof each)[string]>
      return {
        signer: signerIn(keys.first.id),
        boundSigner: signerIn(boundName(keys.first.id)),
        keySigner: signerIn(keyName(keys.first.id)),
        verifiers: new Map(
          [...keys.byId.values()].map(({ id, secret }) => [
            id,
            { key: createSecretKey(secret, 'utf8'), jwt: signerIn(id), keyJwt: signerIn(keyName(id)) }
          ])
        ),
        refreshTokens: createRefreshTokens(keys)
      }
    }

    let inForce = await open(app.config.jwtSecret)
    app.secrets.follow(['jwtSecret'], async ({ jwtSecret }) => {
      const next = await open(jwtSecret)
      return () => {
        inForce = next
      }
    })

    function verify(token: string, { expired }: { expired: 'refused' | 'accepted' }): AccessClaims {
      const header = token.length <= maxTokenLength ? readHeader(token) : undefined
      const verifier = header && inForce.verifiers.get(header.kid)
      if (!header || !verifier || !isSigned(token, verifier.key) || !isCanonical(token)) throw invalidToken()
      const [each, options] =
        header.typ === keyType ? [verifier.keyJwt, verifyKeyOptions] : [verifier.jwt, verifyOptions]
      let content: unknown
      try {
        content = withoutStacks(() =>
          // with options, the package creates a new verifier for each call; the common case avoids this cost
          expired === 'accepted' ? each.verify(token, { ...options, ignoreExpiration: true }) : each.verify(token)
        )
      } catch (err) {
        const { code } = err as { code?: string }
        throw code === 'FAST_JWT_EXPIRED' ? tokenExpired() : invalidToken({ cause: err })
      }
      const claims = header.typ === keyType ? readKeyClaims(content) : readClaims(content, header.typ === boundType)
      if (claims.iat > Date.now() / 1000 + clockToleranceSeconds) throw invalidToken()
      // a revocation is kept for the configured lifetime, so a token that was issued with a longer one must not outlive
      // it
      claims.exp = Math.min(claims.exp, claims.iat + (claims.key ? keyTokenLife : accessTokenTtl))
      if (expired === 'refused' && claims.exp * 1000 <= Date.now()) throw tokenExpired()
      return claims
    }

    function readClaims(content: unknown, bound: boolean): AccessClaims {
      if (!claimsSchema.Check(content) || (content.cnf !== undefined) !== bound) throw invalidToken()
      return content
    }

    function readKeyClaims(content: unknown): AccessClaims {
      if (!keyClaimsSchema.Check(content)) throw invalidToken()
      const { client_id, sub: _, scope, cidrs, ...claims } = content
      return { ...claims, user_id: client_id, email: '', key: keyReach(scope.split(' ').filter(isPermission), cidrs) }
    }

    app.decorate('tokens', {
      issuer,
      issue(subject: TokenSubject, counter: number): TokenReply {
        const issuedAt = Math.floor(Date.now() / 1000)
        const { signer, boundSigner, refreshTokens } = inForce
        const { user_id, email, tenant_id, role, sid, key_thumbprint } = subject
        const claims = {
          ...{ user_id, email, tenant_id, role, sid },
          ...{ iss: issuer, aud: baseDomain, iat: issuedAt, exp: issuedAt + accessTokenTtl, jti: randomUuid() },
          ...(key_thumbprint !== null && { cnf: { jkt: key_thumbprint } })
        }
        return {
          access_token: (key_thumbprint === null ? signer : boundSigner).sign(claims),
          refresh_token: refreshTokens.issue({ tenant_id, family: sid, counter, key_thumbprint }),
          token_type: key_thumbprint === null ? 'Bearer' : 'DPoP',
          expires_in: accessTokenTtl
        }
      },
      issueForKey({ claims, permissions }: KeyTokenSubject) {
        const issuedAt = Math.floor(Date.now() / 1000)
        const { user_id: client_id, tenant_id, role, sid, key, exp } = claims
        const expires_in = Math.floor(Math.min(keyTokenLife, exp - issuedAt))
        const access_token = inForce.keySigner.sign({
          ...{ client_id, sub: client_id, scope: permissions.join(' '), cidrs: key?.cidrs ?? [], tenant_id, role, sid },
          ...{ iss: issuer, aud: baseDomain, iat: issuedAt, exp: issuedAt + expires_in, jti: randomUuid() }
        })
        return { access_token, expires_in }
      },
      verify,
      verifyRefresh: (token: string) => inForce.refreshTokens.verify(token)
    })
  },
  { name: 'tokens', dependencies: ['config'] }
)

/**
 * Whether the key has signed the token. The package checks that as well, but decodes the token first, and a flood of forged
 * tokens would cost more than answers.
 */
function isSigned(token: string, key: KeyObject): boolean {
  const end = token.lastIndexOf('.')
  const expected = createHmac('sha256', key).update(token.slice(0, end)).digest('base64url')
  const presented = Buffer.from(token.slice(end + 1))
  return presented.length === expected.length && timingSafeEqual(presented, Buffer.from(expected))
}

/**
 * base64url may spell the same bytes in several ways, because the last character can have unused bits. Only our
 * spelling is valid.
 */
function isCanonical(token: string): boolean {
  return token.split('.').every((part) => Buffer.from(part, 'base64url').toString('base64url') === part)
}

/** The name of the signer of tokens that need a proof. */
const boundName = (keyId: string) => `${keyId} bound`
/** The name of the signer of tokens of API keys. */
const keyName = (keyId: string) => `${keyId} key`

/**
 * Undefined unless the header has exactly alg, typ and kid. Other members (crit, jku, jwk, …) would be ignored, so they
 * are refused. `bound`: the token needs a proof.
 */
function readHeader(token: string): { kid: string; typ: string } | undefined {
  try {
    const header = JSON.parse(Buffer.from(token.slice(0, token.indexOf('.')), 'base64url').toString())
    const { alg, typ, kid, ...others } = header
    if (alg !== 'HS256' || typeof kid !== 'string' || Object.keys(others).length > 0) return undefined
    return types.includes(typ) ? { kid, typ } : undefined
  } catch {
    return undefined
  }
}

import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import { isFreshByFactor, markAuthenticated } from '../../db/queries/sessions.ts'
import {
  enableFactor,
  factorsOf,
  removeTotp,
  renewRecoveryCodes,
  startFactor
} from '../../db/queries/sign-in/second-factors.ts'
import { createRecoveryCodes, recoveryDigest } from '../../src/auth/one-time-codes.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { conflict, reauthenticationRequired, sessionRevoked } from '../../src/http/problems.ts'
import { checkProof, requireOne, useProof } from './proofs.ts'
import type { FactorProof, Reauthentication } from './schemas.ts'

type CodeRequest = FastifyRequest<{ Body: { code: string } }>
type ProofRequest = FastifyRequest<{ Body: FactorProof }>

/** Says which factors the person has, and how many recovery codes are left. */
export async function describeFactor(app: FastifyInstance, request: FastifyRequest) {
  const row = await requireRow(app, request)
  const factors = factorsOf(row)
  const enabled = factors.length > 0
  return { enabled, factors, recovery_codes_left: enabled ? row.recovery_codes.length : 0 }
}

/** Creates a secret, which becomes a factor when it is confirmed. Throws `conflict` for a person who has an app. */
export async function startEnrollment(app: FastifyInstance, request: FastifyRequest) {
  const row = await requireRow(app, request)
  const { stored, shown } = app.secondFactors.create(request.user.user_id, row.email)
  const outcome = await request.withTenant(async (trx) => {
    if (!(await isFreshByFactor(trx, request.user))) return 'stale'
    return (await startFactor(trx, stored)) ? 'started' : 'enrolled'
  })
  if (outcome === 'stale') throw reauthenticationRequired()
  if (outcome === 'enrolled') throw conflict({ detail: 'there is an authenticator app: remove it first' })
  return shown
}

/** Confirms the secret by a code of the app. Every other session ends, because it was opened without the factor. */
export async function confirmEnrollment(app: FastifyInstance, request: CodeRequest, reply: FastifyReply) {
  const { user_id, sid } = request.user
  const factor = await requirePending(app, request)
  const { proof, account } = await app.secondFactors.check(request, reply, request.user, factor, request.body.code)
  const { codes, recovery_codes } = createCodes(user_id)
  const confirmed = await request.withTenant(async (trx) => {
    const change = { actor_id: user_id, session_id: sid, token_seconds: revocationSeconds(app.config) }
    const mfa_at = await enableFactor(trx, { id: proof.id, step: proof.step ?? 0, recovery_codes }, change)
    if (mfa_at && !(await markAuthenticated(trx, { ...request.user, mfa_at }))) throw sessionRevoked()
    return mfa_at !== undefined
  })
  if (!confirmed) throw conflict({ detail: notStarted })
  await app.accounts.succeeded(request, account)
  await app.revocations.readNow()
  return codes
}

/**
 * Removes the authenticator app. The proof is of the person anew, so an older sign-in is enough. Every other session ends.
 */
export async function removeEnrollment(app: FastifyInstance, request: ProofRequest, reply: FastifyReply) {
  const { user_id, sid } = request.user
  const change = { actor_id: user_id, session_id: sid, token_seconds: revocationSeconds(app.config) }
  const removed = await withProof(app, request, reply, (trx) => removeTotp(trx, change), { totp: true })
  if (!removed) throw conflict({ detail: noApp })
  await app.revocations.readNow()
}

/** Replaces the recovery codes. */
export async function replaceRecoveryCodes(app: FastifyInstance, request: ProofRequest, reply: FastifyReply) {
  const { user_id, sid } = request.user
  const { codes, recovery_codes } = createCodes(user_id)
  const renewed = await withProof(app, request, reply, (trx, _, id) =>
    renewRecoveryCodes(trx, { id, recovery_codes }, { actor_id: user_id, session_id: sid })
  )
  if (!renewed) throw conflict({ detail: noFactor })
  return codes
}

/** Proves the signed-in person anew, by the password or a factor, for operations that a token alone must not reach. */
export async function reauthenticate(
  app: FastifyInstance,
  request: FastifyRequest<{ Body: Reauthentication }>,
  reply: FastifyReply
) {
  const { password, code, passkey } = request.body
  requireOne({ password, code, passkey })
  const mark = async (trx: TenantTransaction, mfa_at: Date | null) => {
    if (!(await markAuthenticated(trx, { ...request.user, mfa_at }))) throw sessionRevoked()
    const detail = { by: mfa_at ? 'second_factor' : 'password' }
    await recordAudit(trx, { action: 'session.reauthenticated', session_id: request.user.sid, detail })
  }
  if (password === undefined) return withProof(app, request, reply, mark)
  await app.credentials.requirePassword(request, reply, password)
  await request.withTenant((trx) => mark(trx, null))
}

/**
 * Uses a code or a passkey of the signed-in person up, and runs `work` in the same transaction. Throws `conflict` for a
 * person without a factor, or without an authenticator app where `totp` asks for one, and `invalid_credentials` for a
 * proof that is wrong or was used before.
 */
async function withProof<T>(
  app: FastifyInstance,
  request: ProofRequest,
  reply: FastifyReply,
  work: (trx: TenantTransaction, at: Date, factorId: string) => Promise<T>,
  { totp = false } = {}
): Promise<T> {
  const { user_id: actor_id, sid: session_id } = request.user
  const row = await requireRow(app, request)
  if (row.id === null || factorsOf(row).length === 0) throw conflict({ detail: noFactor })
  if (totp && !row.confirmed) throw conflict({ detail: noApp })
  const factor = { ...row, id: row.id }
  const { code, passkey } = request.body
  const expected = { purpose: 'proof', context: session_id } as const
  const given = { ...(code !== undefined && { code }), ...(passkey !== undefined && { passkey }) }
  const { proof, account } = await checkProof(app, request, reply, { person: request.user, factor }, given, expected)
  const done = await request.withTenant(async (trx) => {
    const at = await useProof(trx, proof, { actor_id, session_id })
    return at && { result: await work(trx, at, factor.id) }
  })
  if (!done) throw await app.secondFactors.refuse(request, factor.email)
  await app.accounts.succeeded(request, account)
  return done.result
}

const noFactor = 'there is no second factor'
const noApp = 'there is no authenticator app'

const notStarted = 'no second factor waits for its first code: begin with POST /api/v1/users/me/mfa/totp'

/** The authenticator app that waits for its first code. */
async function requirePending(app: FastifyInstance, request: FastifyRequest) {
  const row = await requireRow(app, request)
  if (row.id === null || row.confirmed || row.secret.length === 0) throw conflict({ detail: notStarted })
  // a recovery code would not show that the app has the secret
  return { ...row, id: row.id, recovery_codes: [] }
}

export async function requireRow(app: FastifyInstance, request: FastifyRequest) {
  const row = await app.secondFactors.find(request)
  if (!row) throw sessionRevoked()
  return row
}

export function createCodes(userId: string) {
  const recovery_codes = createRecoveryCodes()
  return { codes: { recovery_codes }, recovery_codes: recovery_codes.map((code) => recoveryDigest(userId, code)) }
}

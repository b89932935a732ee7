import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { TenantTransaction } from '../../db/gate/gate.ts'
import { recordAudit } from '../../db/queries/audit.ts'
import {
  enableFactor,
  removeFactor,
  renewRecoveryCodes,
  startFactor,
  useFactor
} from '../../db/queries/second-factors.ts'
import { isFresh, markAuthenticated } from '../../db/queries/sessions.ts'
import { createRecoveryCodes, recoveryDigest } from '../../src/auth/one-time-codes.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'
import { invalidMembers } from '../../src/http/field-errors.ts'
import { conflict, reauthenticationRequired, sessionRevoked } from '../../src/http/problems.ts'
import type { Reauthentication } from './schemas.ts'

type CodeRequest = FastifyRequest<{ Body: { code: string } }>

/** Says whether the person has a confirmed factor, and how many recovery codes are left. */
export async function describeFactor(app: FastifyInstance, request: FastifyRequest) {
  const row = await app.secondFactors.find(request)
  if (!row) throw sessionRevoked()
  return { enabled: row.confirmed, recovery_codes_left: row.confirmed ? row.recovery_codes.length : 0 }
}

/** Creates a secret, which becomes a factor when it is confirmed. Throws `conflict` for a person who has a factor. */
export async function startEnrollment(app: FastifyInstance, request: FastifyRequest) {
  const row = await app.secondFactors.find(request)
  if (!row) throw sessionRevoked()
  const { stored, shown } = app.secondFactors.create(request.user.user_id, row.email)
  const outcome = await request.withTenant(async (trx) => {
    if (!(await isFresh(trx, request.user))) return 'stale'
    return (await startFactor(trx, stored)) ? 'started' : 'enrolled'
  })
  if (outcome === 'stale') throw reauthenticationRequired()
  if (outcome === 'enrolled') throw conflict({ detail: 'there is a second factor: remove it first' })
  return shown
}

/** Confirms the secret by a code of the app. Every other session ends, because it was opened without the factor. */
export async function confirmEnrollment(app: FastifyInstance, request: CodeRequest, reply: FastifyReply) {
  const { user_id, sid } = request.user
  const factor = await requireFactor(app, request, { confirmed: false })
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

/** Removes the factor. The code proves the person anew, so an older sign-in is enough. Every other session ends. */
export async function removeEnrollment(app: FastifyInstance, request: CodeRequest, reply: FastifyReply) {
  const { user_id, sid } = request.user
  const change = { actor_id: user_id, session_id: sid, token_seconds: revocationSeconds(app.config) }
  await withCode(app, request, reply, async (trx) => void (await removeFactor(trx, change)))
  await app.revocations.readNow()
}

/** Replaces the recovery codes. */
export async function replaceRecoveryCodes(app: FastifyInstance, request: CodeRequest, reply: FastifyReply) {
  const { user_id, sid } = request.user
  const { codes, recovery_codes } = createCodes(user_id)
  await withCode(app, request, reply, async (trx, _, id) => {
    await renewRecoveryCodes(trx, { id, recovery_codes }, { actor_id: user_id, session_id: sid })
  })
  return codes
}

/** Proves the signed-in person anew, by the password or by a code, for operations that a token alone must not reach. */
export async function reauthenticate(
  app: FastifyInstance,
  request: FastifyRequest<{ Body: Reauthentication }>,
  reply: FastifyReply
) {
  const { password, code } = request.body
  if ((password === undefined) === (code === undefined)) {
    throw invalidMembers([{ path: '/body', message: 'must have either password or code' }])
  }
  const mark = async (trx: TenantTransaction, mfa_at: Date | null) => {
    if (!(await markAuthenticated(trx, { ...request.user, mfa_at }))) throw sessionRevoked()
    const detail = { by: mfa_at ? 'second_factor' : 'password' }
    await recordAudit(trx, { action: 'session.reauthenticated', session_id: request.user.sid, detail })
  }
  if (code !== undefined) return withCode(app, request as CodeRequest, reply, mark)
  await app.credentials.requirePassword(request, reply, password as string)
  await request.withTenant((trx) => mark(trx, null))
}

/**
 * Uses a code of the signed-in person up, and runs `work` in the same transaction. Throws `conflict` for a person
 * without a factor, and `invalid_credentials` for a code that is wrong or was used before.
 */
async function withCode(
  app: FastifyInstance,
  request: CodeRequest,
  reply: FastifyReply,
  work: (trx: TenantTransaction, at: Date, factorId: string) => Promise<void>
): Promise<void> {
  const { user_id: actor_id, sid: session_id } = request.user
  const factor = await requireFactor(app, request, { confirmed: true })
  const { proof, account } = await app.secondFactors.check(request, reply, request.user, factor, request.body.code)
  const used = await request.withTenant(async (trx) => {
    const at = await useFactor(trx, proof, { actor_id, session_id })
    if (at) await work(trx, at, proof.id)
    return at !== undefined
  })
  if (!used) throw await app.secondFactors.refuse(request, factor.email)
  await app.accounts.succeeded(request, account)
}

const notStarted = 'no second factor waits for its first code: begin with POST /api/v1/users/me/mfa/totp'

async function requireFactor(app: FastifyInstance, request: FastifyRequest, { confirmed }: { confirmed: boolean }) {
  const row = await app.secondFactors.find(request)
  if (!row) throw sessionRevoked()
  if (row.id === null || row.confirmed !== confirmed) {
    throw conflict({ detail: confirmed ? 'there is no second factor' : notStarted })
  }
  return { ...row, id: row.id }
}

function createCodes(userId: string) {
  const recovery_codes = createRecoveryCodes()
  return { codes: { recovery_codes }, recovery_codes: recovery_codes.map((code) => recoveryDigest(userId, code)) }
}

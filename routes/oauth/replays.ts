import type { FastifyInstance, FastifyRequest } from 'fastify'
import { queryIn } from '../../db/gate/gate.ts'
import { endSession } from '../../db/queries/sessions.ts'
import { replayCode } from '../../db/queries/sign-in/identities.ts'
import type { FlowCode } from '../../src/auth/oauth-flows.ts'
import { revocationSeconds } from '../../src/auth/token-life.ts'

/**
 * Ends the session that a code has opened, because the code is used again with its verifier (RFC 9700, 4.5.3; ASVS 10.4.2): one
 * of the two who have both is somebody else, and nobody knows which. A sign-in that still waits for a second factor by the code
 * opens none any more. Resolves to false, and does nothing, when the code was not used yet.
 */
export async function endReplayed(app: FastifyInstance, request: FastifyRequest, code: FlowCode): Promise<boolean> {
  const { id, tenant_id } = code
  const replayed = await request.withTenant(
    async (trx) => {
      const mark = await replayCode(trx, id)
      const ending = { token_seconds: revocationSeconds(app.config), action: 'session.code_reused' } as const
      if (mark?.session_id) await queryIn(trx, endSession, { tenant_id, session_id: mark.session_id, ...ending })
      return mark !== undefined
    },
    { tenant_id, user_id: null }
  )
  if (replayed) await app.revocations.readNow()
  return replayed
}

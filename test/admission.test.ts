import t from 'tap'
import { decide, type Entrance, type Facts } from '../src/auth/admission.ts'
import type { AccessClaims } from '../src/auth/claims.ts'
import {
  invalidDpopProof,
  malformedRequest,
  rateLimited,
  sessionRevoked,
  tenantNotFound,
  tokenExpired,
  unknownHost,
  useDpopNonce
} from '../src/http/problems.ts'

const claims = { tenant_id: 'acme', user_id: 'ada', role: 'member' } as AccessClaims
const good = { claims, problem: undefined }
const revoked = { claims, problem: sessionRevoked() }
const expired = { claims: undefined, problem: tokenExpired() }
const acme = { id: 'acme', status: 'active' } as const
const rival = { id: 'rival', status: 'active' } as const
const none: Facts = {
  malformed: undefined,
  overLimit: undefined,
  hostProblem: undefined,
  tenant: undefined,
  bearer: undefined
}

/** What comes of a request: the code of its refusal, or who is calling. */
function outcome(entrance: Entrance, facts: Partial<Facts>) {
  const { refusal, caller, attempt, disguise } = decide(entrance, { ...none, ...facts })
  return {
    ...(refusal && { refusal: refusal.kind.code }),
    ...(caller && { caller: caller.user_id }),
    ...(attempt && { attempt: attempt.user_id }),
    ...(disguise && { disguise: disguise.kind.code })
  }
}

t.test('of several reasons to refuse a request, the first in the list is told', async (t) => {
  const reasons: [fact: Partial<Facts>, code: string][] = [
    [{ malformed: malformedRequest() }, 'malformed_request'],
    [{ overLimit: rateLimited() }, 'rate_limited'],
    [{ hostProblem: unknownHost() }, 'unknown_host'],
    [{ tenant: { id: 'rival', status: 'suspended' } }, 'tenant_not_found'],
    [{ bearer: expired }, 'token_expired']
  ]
  for (const [index, [, code]] of reasons.entries()) {
    const facts = Object.assign({}, ...reasons.slice(index).map(([fact]) => fact))
    t.equal(outcome({ access: 'viewer' }, facts).refusal, code)
  }
})

t.test('a token is told nothing of another tenant but that it is of none of it', async (t) => {
  const cases: [facts: Partial<Facts>, expected: object][] = [
    [{ tenant: acme }, { refusal: 'unauthenticated' }],
    [{ tenant: acme, bearer: good }, { caller: 'ada' }],
    [{ bearer: good }, { caller: 'ada' }],
    [{ tenant: acme, bearer: revoked }, { refusal: 'session_revoked' }],
    [
      { tenant: rival, bearer: good },
      { refusal: 'tenant_mismatch', attempt: 'ada' }
    ],
    [{ tenant: rival, bearer: revoked }, { refusal: 'tenant_mismatch' }],
    [{ tenant: rival, bearer: expired }, { refusal: 'token_expired' }]
  ]
  for (const [facts, expected] of cases) t.strictSame(outcome({ access: 'member' }, facts), expected)
})

t.test('a role that is too low is refused, and remembered as an attempt', async (t) => {
  const facts = { tenant: acme, bearer: good }
  t.strictSame(outcome({ access: 'admin' }, facts), { refusal: 'forbidden', attempt: 'ada' })
  const detail = decide({ access: 'admin' }, { ...none, ...facts }).refusal?.options.detail
  t.match(detail, /the role admin or a higher one/, 'and told which role it takes')
  t.strictSame(outcome({ access: 'internal' }, facts), { refusal: 'forbidden' })
  for (const access of ['user', 'viewer', 'member'] as const)
    t.strictSame(outcome({ access }, facts), { caller: 'ada' })
})

t.test('a suspended tenant exists for its members only', async (t) => {
  const suspended = { id: 'acme', status: 'suspended' } as const
  const stranger = { claims: { ...claims, tenant_id: 'rival' }, problem: undefined }
  for (const access of ['public', 'viewer'] as const) {
    t.strictSame(outcome({ access }, { tenant: suspended }), {
      refusal: 'tenant_not_found',
      disguise: 'tenant_not_found'
    })
    t.strictSame(outcome({ access }, { tenant: suspended, bearer: stranger }), {
      refusal: 'tenant_not_found',
      disguise: 'tenant_not_found'
    })
    t.strictSame(outcome({ access }, { tenant: suspended, bearer: good }), {
      refusal: 'tenant_suspended',
      disguise: 'tenant_suspended'
    })
    for (const problem of [useDpopNonce(), invalidDpopProof()]) {
      const { refusal } = outcome({ access }, { tenant: suspended, bearer: { claims, problem } })
      t.equal(refusal, 'tenant_suspended', 'also for those whose client has no nonce yet')
    }
    t.strictSame(outcome({ access }, { tenant: suspended, bearer: { ...stranger, problem: useDpopNonce() } }), {
      refusal: 'tenant_not_found',
      disguise: 'tenant_not_found'
    })
  }
  t.strictSame(
    outcome({ access: 'public', host: 'suspended' }, { tenant: suspended }),
    { disguise: 'tenant_not_found' },
    'a route that answers there is reached, and its refusals are disguised'
  )
})

t.test('a public route asks for no token, and one for any host for no host either', async (t) => {
  t.strictSame(outcome({ access: 'public' }, { tenant: acme, bearer: expired }), {})
  t.strictSame(outcome({ access: 'public', host: 'any' }, { hostProblem: tenantNotFound() }), {})
  t.strictSame(outcome({ access: 'public', host: 'any' }, { malformed: malformedRequest() }), {
    refusal: 'malformed_request'
  })
  t.strictSame(outcome({ access: 'public', host: 'any' }, { overLimit: rateLimited() }), { refusal: 'rate_limited' })
})

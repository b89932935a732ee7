import { maxFieldErrors } from './field-errors.ts'
import { catalogue } from './problems.ts'

/*
 * Problem documents (RFC 9457) as the OpenAPI document describes them.
 */

const exampleId = '7f6c1d5e-2f0b-4a53-9a54-0e3f5f0f3f63'

export const fieldErrorSchema = {
  type: 'object',
  required: ['path', 'message'],
  properties: { path: { type: 'string' }, message: { type: 'string' } }
}

export const problemSchema = {
  type: 'object',
  description: 'Why a request failed (RFC 9457). Switch on `code`.',
  required: ['type', 'title', 'status', 'code'],
  properties: {
    type: { type: 'string', format: 'uri-reference', description: 'A page that says what it means and what to do' },
    title: { type: 'string' },
    status: { type: 'integer', minimum: 400, maximum: 599 },
    detail: { type: 'string' },
    code: { type: 'string', enum: [...catalogue.keys()] },
    error: {
      type: 'string',
      enum: [...catalogue.values()].filter(({ isOAuth }) => isOAuth).map(({ code }) => code),
      description: 'The code once more, for OAuth clients; only at the token endpoint'
    },
    request_id: { type: 'string' },
    errors: {
      type: 'array',
      maxItems: maxFieldErrors,
      description: 'Every failure of validation, with a JSON pointer each; only with `validation_failed`',
      items: { $ref: '#/components/schemas/FieldError' }
    },
    mfa_token: {
      type: 'string',
      description: 'Completes the sign-in at `POST /api/v1/auth/mfa`; only with `mfa_required`'
    },
    factors: {
      type: 'array',
      maxItems: 2,
      description: 'What completes the sign-in: a code of an app, a passkey, or either; only with `mfa_required`',
      items: { type: 'string', enum: ['totp', 'passkey'] }
    },
    enroll: { type: 'boolean', description: 'There is no second factor yet; only with `mfa_required`' },
    provider: {
      type: 'string',
      description: 'Where the person comes in: `GET /api/v1/auth/oauth/{provider}`; only with `provider_required`'
    },
    missing: {
      type: 'array',
      maxItems: 3,
      description: 'What the agency lacks before it can demand a provider; only with `enforcement_not_ready`',
      items: { type: 'string', enum: ['proven_domain', 'owner_sign_in', 'break_glass_owner'] }
    },
    reason: {
      type: 'string',
      enum: ['no_name', 'no_record', 'other_records', 'server_failure', 'timeout', 'another_key'],
      description:
        'What DNS has answered, with `domain_not_proven`. `another_key`, with `invalid_dpop_proof`: the proof is by a key that can never do, so sign in again.'
    }
  },
  examples: [
    {
      type: '/api/v1/problems/validation_failed',
      title: 'Validation failed',
      status: 400,
      detail: 'body/email must be an e-mail address',
      code: 'validation_failed',
      request_id: exampleId,
      errors: [{ path: '/body/email', message: 'must be an e-mail address' }]
    }
  ]
}

/** Members that a problem of this code has beside those of every problem. */
const extensions: Record<string, object> = {
  mfa_required: { mfa_token: 'Gm9v…', factors: ['totp', 'passkey'] },
  provider_required: { provider: '019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e' },
  enforcement_not_ready: { missing: ['proven_domain', 'break_glass_owner'] },
  domain_not_proven: { reason: 'no_record' }
}

/** What clients go on with after a refusal, as examples of the OpenAPI document. */
export const problemExamples = Object.fromEntries(
  Object.entries(extensions).map(([code, members]) => {
    const { status = 0, title = '' } = catalogue.get(code) ?? {}
    const value = { type: `/api/v1/problems/${code}`, title, status, code, request_id: exampleId, ...members }
    return [code, { summary: title, value }]
  })
)

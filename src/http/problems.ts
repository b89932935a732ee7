import { problem } from './problem-documents.ts'

export {
  catalogue,
  type FieldError,
  mediaTypeOf,
  Problem,
  type ProblemKind,
  type ProblemOptions,
  problemText
} from './problem-documents.ts'

export * from './sign-in-problems.ts'
export * from './token-problems.ts'

/*
 * The catalogue of all problems that clients can get (RFC 9457).
 *
 * A `code` is stable, so clients may branch on it; the wording may change. Each entry is a function that makes an error
 * to throw. Only the error handler writes problem documents to a reply.
 */

const retryLater = 'Wait for the seconds in Retry-After, then send the request again.'

// 400
export const validationFailed = problem(
  'validation_failed',
  400,
  'Validation failed',
  'Correct each member listed in `errors` (a JSON pointer and a message each) and send the request again.'
)
export const malformedJson = problem(
  'malformed_json',
  400,
  'The body is not JSON',
  'Send one valid JSON value in UTF-8.'
)
export const malformedRequest = problem(
  'malformed_request',
  400,
  'The request is not well-formed HTTP',
  'Send exactly one Host header, at most one Authorization header, an origin-form target and valid framing.'
)
export const invalidCursor = problem(
  'invalid_cursor',
  400,
  'The cursor is not one of this list',
  'Use `next_cursor` of the preceding page unchanged, or start again without a cursor.'
)

// 401
export const unauthenticated = problem(
  'unauthenticated',
  401,
  'Sign in first',
  'Send `Authorization: Bearer` with an access token from sign-in.'
)
export const invalidToken = problem(
  'invalid_token',
  401,
  'The access token is not valid',
  'Use the access token exactly as it was issued, or sign in again.'
)
export const tokenExpired = problem(
  'token_expired',
  401,
  'The access token has expired',
  'Use the refresh token at `POST /api/v1/auth/refresh`. A changed role expires a token early.'
)
export const sessionRevoked = problem('session_revoked', 401, 'The session has ended', 'Sign in again.')
export const invalidCredentials = problem(
  'invalid_credentials',
  401,
  'E-mail, password, code or passkey is wrong',
  'Check them. The answer is the same for an address that nobody has registered. A code of an app is good for a minute, and once.'
)
export const invalidRefreshToken = problem(
  'invalid_refresh_token',
  401,
  'The refresh token is not valid',
  'Sign in again. Refresh tokens are used once; keep only the newest.'
)
export const refreshTokenReused = problem(
  'refresh_token_reused',
  401,
  'The refresh token was used before',
  'Sign in again. A used token shown later may be stolen, so its whole session was ended.'
)
/** The password was right. `mfa_token`, if there is one, completes the sign-in. */
export const mfaRequired = problem(
  'mfa_required',
  401,
  'A second factor is required',
  'Send `mfa_token` with a code, or with a passkey where `factors` names it, to `POST /api/v1/auth/mfa`. With `enroll` there is no factor yet: get a secret at `POST /api/v1/auth/mfa/totp` first. Without `mfa_token`, `detail` says what to do.'
)
export const invalidMfaToken = problem(
  'invalid_mfa_token',
  401,
  'The mfa_token is not valid',
  'Sign in with the password again. A token is good for five minutes (fifteen to enroll) and for one sign-in, and ends when the password changes.'
)

// 403
export const forbidden = problem(
  'forbidden',
  403,
  'Your role does not allow this',
  'Ask an admin or owner of the agency.'
)
export const tenantMismatch = problem(
  'tenant_mismatch',
  403,
  'The token belongs to another agency',
  "Call the host of the token's agency, or get a token for this one at `POST /api/v1/auth/switch`."
)
export const tenantSuspended = problem('tenant_suspended', 403, 'The agency is suspended', 'Contact the operator.')
export const notAMember = problem(
  'not_a_member',
  403,
  'You are not a member of any agency',
  'Accept an invitation or register an agency of your own.'
)
/** A stolen access token must not be enough for what can't be undone. */
export const reauthenticationRequired = problem(
  'reauthentication_required',
  403,
  'Prove again who you are',
  'Send the password, a code or a passkey to `POST /api/v1/auth/reauthenticate`, then repeat the request within five minutes.'
)
export const requestBlocked = problem(
  'request_blocked',
  403,
  'The request looks like an attack',
  'Send ordinary values. If they are, tell the operator the request id: a rule may have to be left out.'
)

// 404, 405, 408
export const notFound = problem(
  'not_found',
  404,
  'There is no such object',
  'Check the id. Objects of another agency answer the same.'
)
/** Non-members get this for a suspended tenant as well, so that names of tenants can't be probed. */
export const tenantNotFound = problem('tenant_not_found', 404, 'There is no such agency', 'Check the host name.')
export const routeNotFound = problem('route_not_found', 404, 'There is no such route', 'Read `/api/v1/docs`.')
export const methodNotAllowed = problem(
  'method_not_allowed',
  405,
  'The route does not know this method',
  'Use one of the methods in the Allow header.'
)
export const requestTimeout = problem(
  'request_timeout',
  408,
  'The request did not arrive in time',
  'Send it again on a faster connection.'
)

// 409, 412, 413, 415, 416, 421, 422
export const conflict = problem(
  'conflict',
  409,
  'It is not in a state that allows this',
  'Read it again; `detail` says what is in the way.'
)
export const slugTaken = problem(
  'slug_taken',
  409,
  'This slug is not available',
  'Choose another one; `detail` says whether it is taken or reserved.'
)
export const emailTaken = problem(
  'email_taken',
  409,
  'This address has an account',
  'Sign in with it, then create another agency at `POST /api/v1/tenants`.'
)
export const alreadyInvited = problem(
  'already_invited',
  409,
  'This address already has an invitation',
  'Send it again with `POST /api/v1/invitations/{id}/resend`, or revoke it first.'
)
export const alreadyAMember = problem(
  'already_a_member',
  409,
  'This person is a member already',
  'There is nothing to do.'
)
export const idempotencyKeyInUse = problem(
  'idempotency_key_in_use',
  409,
  'A request with this Idempotency-Key is still running',
  'Wait for its reply, or send the same request again a moment later.'
)
/** The holder of the token was invited, so this answer may reveal that the invitation existed. */
export const invitationExpired = problem(
  'invitation_expired',
  410,
  'The invitation is no longer good',
  'Ask for a new one. It expired, was sent again, or was used.'
)
/** One answer for every reason, so that a token tells nothing about the account. */
export const linkExpired = problem(
  'link_expired',
  410,
  'The link is no longer good',
  'Ask for a new mail. The link has expired, was used, was replaced by a newer one, or the account has changed since.'
)
export const lastOwner = problem(
  'last_owner',
  409,
  'An agency keeps at least one owner',
  'Make somebody else an owner, or delete the agency, first.'
)
export const preconditionFailed = problem(
  'precondition_failed',
  412,
  'It has changed since you read it',
  'Read it again and repeat the change with the new ETag in If-Match.'
)
/** The tus protocol requires this status. */
export const unsupportedVersion = problem(
  'unsupported_version',
  412,
  'This version of the protocol is not spoken here',
  'Send one of the versions in Tus-Version as Tus-Resumable.'
)
export const payloadTooLarge = problem('payload_too_large', 413, 'The body is too large', 'Send less.')
export const fileTooLarge = problem(
  'file_too_large',
  413,
  'The file is too large',
  'Send a smaller file. `detail` says how large one may be.'
)
export const rangeNotSatisfiable = problem(
  'range_not_satisfiable',
  416,
  'The file has no such range',
  'Ask for bytes that are within the size in Content-Range.'
)
export const quotaExceeded = problem(
  'quota_exceeded',
  422,
  "The agency's storage is full",
  'Delete files for good, or ask for more room. `usage` of `GET /api/v1/tenant` says how much there is; the number of files has a limit too.'
)
export const unsupportedMediaType = problem(
  'unsupported_media_type',
  415,
  'This media type is not accepted here',
  'Send the Content-Type that the operation names, and files that are what their name says.'
)
export const unknownHost = problem(
  'unknown_host',
  421,
  'This server does not serve that host',
  'Use the host of your agency or the api host.'
)

export const idempotencyKeyReused = problem(
  'idempotency_key_reused',
  422,
  'This Idempotency-Key was used for another request',
  'Choose a new key for each act, and repeat it only with the same body.'
)

// 429, 431
export const rateLimited = problem('rate_limited', 429, 'Too many requests', retryLater)
export const headersTooLarge = problem('headers_too_large', 431, 'The headers are too large', 'Send smaller headers.')

// 5xx
export const internalError = problem(
  'internal_error',
  500,
  'Something went wrong here',
  'Report the request id; the cause is in the log under it.'
)
export const unavailable = problem('unavailable', 503, 'A part of the service is away', retryLater)
export const overloaded = problem('overloaded', 503, 'The service is busy', retryLater)
/** The object store is full for all tenants, and an operator must make room. */
export const storageFull = problem('storage_full', 507, 'There is no room for files', retryLater)
export const shuttingDown = problem('shutting_down', 503, 'This process is shutting down', retryLater)

import { oauthProblem } from './problem-documents.ts'

/*
 * The part of the catalogue in problems.ts that the token endpoint answers with. The codes are those of RFC 6749, 5.2. OAuth clients
 * read them from `error`, in a body of `application/json`.
 */

export const invalidRequest = oauthProblem(
  'invalid_request',
  400,
  'The request for a token is not well-formed',
  'Send each parameter once, and authenticate in one way: by HTTP Basic, or by `client_id` and `client_secret` in the body.'
)
export const invalidScope = oauthProblem(
  'invalid_scope',
  400,
  'The key does not have this scope',
  'Ask for permissions that the API key has, with spaces between them, or leave `scope` out for all of them.'
)
export const unsupportedGrantType = oauthProblem(
  'unsupported_grant_type',
  400,
  'This grant type is not supported',
  'Send `grant_type=client_credentials`. People sign in at `POST /api/v1/auth/login`.'
)
export const invalidClient = oauthProblem(
  'invalid_client',
  401,
  'The client could not be authenticated',
  'Send the id of an API key as `client_id`, and the whole key as `client_secret`. `detail` says what is wrong with one that is known.'
)

export {
  type AggiosClient,
  type AggiosClientOptions,
  createAggiosClient,
  type ProviderSignIn,
  type ProviderStart,
  type UploadOptions
} from './client.js'
export type { EventMessage, EventReader, EventsOptions } from './events.js'
export type { Factors } from './factors.js'
export type { Lock } from './locks.js'
export { type ProblemCode, ProblemError, unwrap } from './problems.js'
export { createProofKey, storedProofKey } from './proofs.js'
export type { RetryOptions, Send } from './retries.js'
export type * from './schema.js'
export { localStorageStore, memoryStore, type StoredTokens, type TokenStore } from './stores.js'

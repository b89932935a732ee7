import type { Config } from '../config/config.ts'
import type { Level } from '../observability/log-level.ts'
import type { SecretValues } from '../secrets/live-secrets.ts'
import type { Reports } from './serving.ts'

/*
 * The messages between the primary process and its workers.
 */

export type ToWorker =
  | { type: 'start'; config: Config }
  | { type: 'secrets'; values: SecretValues }
  | { type: 'drain'; reason: object }
  | { type: 'log-level'; level: Level }
  | { type: 'report'; id: number; what: keyof Reports }

export type ToPrimary =
  | { type: 'hello' }
  | { type: 'ready'; port: number }
  | { type: 'adopted'; values: Partial<SecretValues> }
  | { type: 'report'; id: number; report: Reports[keyof Reports] | undefined }

import type { Config } from '../config/config.ts'
import type { Level } from '../observability/log-level.ts'
import type { Reports } from './serving.ts'

/*
 * The messages between the primary process and its workers.
 */

export type ToWorker =
  | { type: 'start'; config: Config }
  | { type: 'drain'; reason: object }
  | { type: 'log-level'; level: Level }
  | { type: 'report'; id: number; what: keyof Reports }

export type ToPrimary =
  | { type: 'hello' }
  | { type: 'ready'; port: number }
  | { type: 'report'; id: number; report: Reports[keyof Reports] | undefined }

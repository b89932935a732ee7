import { randomBytes } from 'node:crypto'
import type { Config } from '../../config/config.ts'
import type { Environment } from '../../config/environment.ts'
import type { Fleet } from './fleet.ts'

/** What every rotation works with. */
export type Rotation = {
  config: Config
  env: Environment
  fleet: Fleet
  /** Prints a step that is done. */
  step(line: string): void
}

/** A secret of 256 random bits, of characters that every URL and file takes. */
export const newSecret = () => randomBytes(32).toString('base64url')

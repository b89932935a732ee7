import { SemaphoreExhausted } from '../../src/limits/keyed-semaphore.ts'

/** What a failed query means for who asked, read from PostgreSQL's SQLSTATE or the driver's own complaint. */
export type Failure = 'connection' | 'timeout' | 'crowded' | 'conflict' | 'invalid_text' | undefined

/**
 * Thrown where a connection could not be made, whatever the reason: a changed password, a role or database that is gone, a server
 * that refuses TLS. For who asked it is the same as a server that is away. `code` is that of its cause.
 */
export class ConnectFailure extends Error {
  readonly code: string | undefined
  constructor(cause: Error) {
    super(cause.message, { cause })
    this.code = (cause as { code?: string }).code
  }
}

const byState: Record<string, Failure> = {
  '40001': 'conflict',
  '40P01': 'conflict',
  '55P03': 'crowded',
  '53300': 'crowded',
  '57014': 'timeout',
  '57P01': 'connection',
  '57P02': 'connection',
  '57P03': 'connection',
  // ended by PostgreSQL: the database was dropped, or nothing was asked for too long
  '57P04': 'connection',
  '57P05': 'connection',
  '25P03': 'connection',
  // its disk is full or broken, its memory is short, it must not be written
  '53100': 'connection',
  '53200': 'connection',
  '58030': 'connection',
  '25006': 'connection',
  // a NUL or half a surrogate pair in a text; a time that no calendar has
  '22021': 'invalid_text',
  '22P05': 'invalid_text',
  '22007': 'invalid_text',
  '22008': 'invalid_text',
  '22009': 'invalid_text'
}

const fromSystem = new Set([
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'ENOTFOUND',
  'EAI_AGAIN',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOENT',
  'EMFILE',
  'ENFILE'
])

const fromDriver =
  /^(Connection terminated|Client has encountered a connection error|Client was closed|timeout expired|Query read timeout|the pipeline is closed|Cannot use a pool after calling end)/

/** undefined: nothing that the database or the way to it can be blamed for. */
export function classifyFailure(err: unknown): Failure {
  if (!(err instanceof Error)) return undefined
  if (err instanceof SemaphoreExhausted) return 'crowded'
  const { code, syscall } = err as { code?: string; syscall?: string }
  if (code !== undefined && byState[code]) return byState[code]
  if (code?.startsWith('08')) return 'connection'
  if (code !== undefined && fromSystem.has(code) && syscall !== undefined) return 'connection'
  if (err.message.startsWith('timeout exceeded when trying to connect')) return 'crowded'
  return err instanceof ConnectFailure || fromDriver.test(err.message) ? 'connection' : undefined
}

/** PostgreSQL's "cached plan must not change result type" and "prepared statement does not exist". */
export function isStalePlan(err: unknown): boolean {
  const { code } = err as { code?: string }
  return code === '0A000' || code === '26000'
}

import { SemaphoreExhausted } from '../../src/limits/keyed-semaphore.ts'

/** What a failed query means for its caller, derived from PostgreSQL's SQLSTATE or from the driver's error. */
export type Failure = 'connection' | 'timeout' | 'overloaded' | 'conflict' | 'invalid_text' | undefined

/**
 * Thrown when a connection can't be opened, for any reason: a changed password, a missing role or database, a server that
 * refuses TLS. Callers treat all of them like an unreachable server. `code` is the code of the cause.
 */
export class ConnectFailure extends Error {
  readonly code: string | undefined
  constructor(cause: Error) {
    super(cause.message, { cause })
    this.code = (cause as { code?: string }).code
  }
}

/** Thrown when a commit is in force on the primary, and PostgreSQL does not know whether a synchronous standby has it. */
export class UnreplicatedCommit extends Error {
  constructor() {
    super('the wait for the synchronous standby was cancelled')
  }
}

const failureBySqlState: Record<string, Failure> = {
  '40001': 'conflict',
  '40P01': 'conflict',
  '55P03': 'overloaded',
  '53300': 'overloaded',
  '57014': 'timeout',
  '57P01': 'connection',
  '57P02': 'connection',
  '57P03': 'connection',
  // PostgreSQL closed the connection: the database was dropped, or the session or transaction was idle for too long
  '57P04': 'connection',
  '57P05': 'connection',
  '25P03': 'connection',
  // the server's disk is full or broken, its memory is exhausted, or it is read-only
  '53100': 'connection',
  '53200': 'connection',
  '58030': 'connection',
  '25006': 'connection',
  // a NUL or half a surrogate pair in a text; a date or time that does not exist
  '22021': 'invalid_text',
  '22P05': 'invalid_text',
  '22007': 'invalid_text',
  '22008': 'invalid_text',
  '22009': 'invalid_text'
}

const systemErrorCodes = new Set([
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

const driverMessages =
  /^(Connection terminated|Client has encountered a connection error|Client was closed|timeout expired|Query read timeout|the pipeline is closed|Cannot use a pool after calling end)/

/** Undefined when neither the database nor the connection caused the error. */
export function classifyFailure(err: unknown): Failure {
  if (!(err instanceof Error)) return undefined
  if (err instanceof SemaphoreExhausted) return 'overloaded'
  const { code, syscall } = err as { code?: string; syscall?: string }
  if (code !== undefined && failureBySqlState[code]) return failureBySqlState[code]
  if (code?.startsWith('08')) return 'connection'
  if (code !== undefined && systemErrorCodes.has(code) && syscall !== undefined) return 'connection'
  if (err.message.startsWith('timeout exceeded when trying to connect')) return 'overloaded'
  if (err instanceof UnreplicatedCommit) return 'connection'
  return err instanceof ConnectFailure || driverMessages.test(err.message) ? 'connection' : undefined
}

/** Whether PostgreSQL refused a prepared statement: "cached plan must not change result type" or "does not exist". */
export function isStalePlan(err: unknown): boolean {
  const { code } = err as { code?: string }
  return code === '0A000' || code === '26000'
}

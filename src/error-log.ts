/**
 * The properties of an error that are logged. Other properties may hold secrets, for example a connection with its
 * keys.
 */
const loggedProperties = [
  'code',
  'errno',
  'syscall',
  'address',
  'port',
  'severity',
  'schema',
  'table',
  'column',
  'constraint',
  'routine',
  'status',
  'statusCode',
  'responseCode'
] as const

const maxCauses = 5
const maxLength = 4096

export type LoggedError = { [key: string]: unknown; type: string; message: string; stack: string }

/**
 * Serializes an error for the log: its name, message, stack and the properties above, and those of its causes.
 *
 * All other properties are left out, because libraries attach the objects that they worked with: connections with the
 * keys that cancel their queries, or commands with the values in them.
 */
export function serializeError(err: unknown, depth = 0): LoggedError {
  if (!(err instanceof Error)) {
    return {
      type: typeof err,
      message: typeof err === 'object' ? 'no error was thrown' : truncate(String(err)),
      stack: ''
    }
  }
  const logged: LoggedError = { type: err.name, message: truncate(err.message), stack: truncate(err.stack ?? '') }
  for (const name of loggedProperties) {
    const value = (err as unknown as Record<string, unknown>)[name]
    if (typeof value === 'number') logged[name] = value
    else if (typeof value === 'string') logged[name] = truncate(value)
  }
  if (depth === maxCauses) return logged
  if (err.cause !== undefined) logged.cause = serializeError(err.cause, depth + 1)
  if (err instanceof AggregateError) {
    logged.errors = err.errors.slice(0, maxCauses).map((each) => serializeError(each, depth + 1))
  }
  return logged
}

const truncate = (text: string) => text.slice(0, maxLength)

/** What an error says of itself in words and numbers; anything else may hang on it, a connection with its keys for one. */
const facts = [
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
 * An error for the log: its name, message, stack and facts, and the same of its causes. Libraries hang onto their errors what
 * they were working with: connections with the keys to cancel their queries, commands with the values in them. None of that
 * is written.
 */
export function serializeError(err: unknown, depth = 0): LoggedError {
  if (!(err instanceof Error)) {
    return { type: typeof err, message: typeof err === 'object' ? 'no error was thrown' : cut(String(err)), stack: '' }
  }
  const logged: LoggedError = { type: err.name, message: cut(err.message), stack: cut(err.stack ?? '') }
  for (const name of facts) {
    const fact = (err as unknown as Record<string, unknown>)[name]
    if (typeof fact === 'number') logged[name] = fact
    else if (typeof fact === 'string') logged[name] = cut(fact)
  }
  if (depth === maxCauses) return logged
  if (err.cause !== undefined) logged.cause = serializeError(err.cause, depth + 1)
  if (err instanceof AggregateError) {
    logged.errors = err.errors.slice(0, maxCauses).map((each) => serializeError(each, depth + 1))
  }
  return logged
}

const cut = (text: string) => text.slice(0, maxLength)

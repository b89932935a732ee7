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
 * Serializes an error for the log: its name, message, stack and the properties above, and those of its causes. Texts are
 * masked.
 *
 * All other properties are left out, because libraries attach the objects that they worked with: connections with the
 * keys that cancel their queries, or commands with the values in them.
 */
export function serializeError(err: unknown, depth = 0): LoggedError {
  if (!(err instanceof Error)) {
    return {
      type: typeof err,
      message: typeof err === 'object' ? 'no error was thrown' : masked(String(err), undefined),
      stack: ''
    }
  }
  const mask = (text: string) => masked(text, (err as { code?: unknown }).code)
  const logged: LoggedError = { type: err.name, message: mask(err.message), stack: mask(err.stack ?? '') }
  for (const name of loggedProperties) {
    const value = (err as unknown as Record<string, unknown>)[name]
    if (typeof value === 'number') logged[name] = value
    else if (typeof value === 'string') logged[name] = mask(value)
  }
  if (depth === maxCauses) return logged
  if (err.cause !== undefined) logged.cause = serializeError(err.cause, depth + 1)
  if (err instanceof AggregateError) {
    logged.errors = err.errors.slice(0, maxCauses).map((each) => serializeError(each, depth + 1))
  }
  return logged
}

/** A code of PostgreSQL for a value that it can't read (class 22), whose message quotes that value. */
const unreadableValue = /^22[0-9A-Z]{3}$/
/** The part of an address before the @, and what is before the host of a URL. Servers of others repeat both. */
const personal = /[^\s<>"'`,;:()[\]/\\@]{1,64}(?=@[\w.-])|(?<=:\/\/)[^\s/@]{1,256}(?=@)/g

/**
 * The text of an error without what it repeats: the value that PostgreSQL could not read, who an address belongs to, and
 * the password in a URL. The domain of an address stays, because it says whose mail server refused.
 */
function masked(text: string, code: unknown): string {
  const [start, end] = [text.indexOf('"'), text.lastIndexOf('"')]
  const quotes = typeof code === 'string' && unreadableValue.test(code) && start !== end
  return (quotes ? `${text.slice(0, start)}"…${text.slice(end)}` : text).slice(0, maxLength).replace(personal, '…')
}

/**
 * Returns the messages of an error and of its causes, joined by colons. With LOG_LEVEL=debug stacks replace the
 * messages.
 */
export function describe(err: unknown): string {
  if (!(err instanceof Error)) return String(err)
  // connecting to a name with several addresses: the error itself has no message, each address has its own error
  if (err instanceof AggregateError && err.errors.length > 0) return describe(err.errors[0])
  const own = process.env.LOG_LEVEL === 'debug' ? (err.stack ?? err.message) : err.message || err.name
  if (!err.cause) return own
  const cause = describe(err.cause)
  // an error that only wraps its cause has the same message
  return cause === own ? own : `${own}: ${cause}`
}

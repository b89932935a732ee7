/** The message of an error and those of its causes; the stack only when somebody asks for it. */
export function describe(err: unknown): string {
  if (!(err instanceof Error)) return String(err)
  // where a name has several addresses, each has an error of its own, and this one no text
  if (err instanceof AggregateError && err.errors.length > 0) return describe(err.errors[0])
  const own = process.env.LOG_LEVEL === 'debug' ? (err.stack ?? err.message) : err.message || err.name
  if (!err.cause) return own
  const cause = describe(err.cause)
  // an error that only says where its cause came up has its words
  return cause === own ? own : `${own}: ${cause}`
}

/** The message of an error and those of its causes; the stack only when somebody asks for it. */
export function describe(err: unknown): string {
  if (!(err instanceof Error)) return String(err)
  const own = process.env.LOG_LEVEL === 'debug' ? (err.stack ?? err.message) : err.message || err.name
  return err.cause ? `${own}: ${describe(err.cause)}` : own
}

/**
 * An error that is part of normal operation and that says all there is by its class and message. No stack is taken for it: under
 * a flood of refused requests the stacks would cost more than the rest of the refusals.
 */
export class ExpectedError extends Error {
  constructor(message?: string, options?: ErrorOptions) {
    const { stackTraceLimit } = Error
    Error.stackTraceLimit = 0
    super(message, options)
    Error.stackTraceLimit = stackTraceLimit
  }
}

/** Calls a function of a library whose errors are expected, so that no stack is taken for them either. Synchronous only. */
export function withoutStacks<T>(work: () => T): T {
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  try {
    return work()
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}

/**
 * The base class of errors that are part of normal operation, such as a refused request. Class and message say
 * everything, so no stack trace is captured: under a flood of requests the stacks would cost more than the rest of the
 * refusals.
 */
export class ExpectedError extends Error {
  constructor(message?: string, options?: ErrorOptions) {
    const { stackTraceLimit } = Error
    Error.stackTraceLimit = 0
    super(message, options)
    Error.stackTraceLimit = stackTraceLimit
  }
}

/** Calls a synchronous function, without capturing stack traces for the errors that a library creates in it. */
export function withoutStacks<T>(work: () => T): T {
  const { stackTraceLimit } = Error
  Error.stackTraceLimit = 0
  try {
    return work()
  } finally {
    Error.stackTraceLimit = stackTraceLimit
  }
}

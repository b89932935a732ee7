/**
 * Passes `value` to `next`: at once where it is no promise. On the hot path there is nothing to wait for, and a promise that is
 * awaited all the same would cost a turn of the event loop's microtasks.
 */
export function after<T, U>(value: T | Promise<T>, next: (value: T) => U | Promise<U>): U | Promise<U> {
  return value instanceof Promise ? value.then(next) : next(value)
}

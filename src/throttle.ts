/**
 * Makes a function that does `work` at most once in `intervalMs`: at once, or at the end of the interval. What is asked for in
 * between is one more time.
 */
export function createThrottle(intervalMs: number, work: () => void) {
  let timer: NodeJS.Timeout | undefined
  let again = false

  function run(): void {
    again = timer !== undefined
    if (again) return
    timer = setTimeout(() => {
      timer = undefined
      if (again) run()
    }, intervalMs)
    timer.unref()
    work()
  }

  return {
    run,
    /** Does nothing more of what was asked for. */
    stop(): void {
      clearTimeout(timer)
      again = false
    }
  }
}

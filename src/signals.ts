/** npm passes on at once what a terminal has sent to everybody already, so one Ctrl-C comes two or three times. */
const sameMs = 500

/**
 * Calls `begin` at the first SIGINT or SIGTERM, and `insist` at each that comes half a second later or more: whoever sends that
 * one has seen the first.
 */
export function onSignals(begin: (signal: NodeJS.Signals) => void, insist: () => void): void {
  let since: number | undefined
  for (const each of ['SIGINT', 'SIGTERM'] as const) {
    process.on(each, () => {
      if (since === undefined) {
        since = performance.now()
        begin(each)
      } else if (performance.now() - since >= sameMs) insist()
    })
  }
}

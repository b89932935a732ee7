/**
 * Signals within this time are one request. A Ctrl-C arrives two or three times: from the terminal, and again from npm.
 */
const duplicateMs = 500

/**
 * Calls `onFirst` at the first SIGINT or SIGTERM, and `onRepeated` at each further signal that comes at least half a
 * second after the first one, when the sender has decided not to wait.
 */
export function onSignals(onFirst: (signal: NodeJS.Signals) => void, onRepeated: () => void): void {
  let firstAt: number | undefined
  for (const each of ['SIGINT', 'SIGTERM'] as const) {
    process.on(each, () => {
      if (firstAt === undefined) {
        firstAt = performance.now()
        onFirst(each)
      } else if (performance.now() - firstAt >= duplicateMs) onRepeated()
    })
  }
}

/** Calls `reload` at each SIGHUP, which would end the process otherwise. */
export function onHangUp(reload: () => void): void {
  process.on('SIGHUP', reload)
}

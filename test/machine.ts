import { existsSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

/** Of the time that we wanted of all cores, what a hypervisor may give to others before what runs here no longer keeps its bounds. */
const tolerable = 0.25
/** Of Linux's books, for all programs: `getconf CLK_TCK`. */
const tickMs = 10
const spinMs = 2000
const pauseMs = 18_000
/** Of a whole run. */
let looksLeft = 30

/** Ticks of all cores, by Linux's own books: taken away by the hypervisor, and wanted at all. */
function ticks(): { stolen: number; wanted: number } {
  if (!existsSync('/proc/stat')) return { stolen: 0, wanted: 0 }
  const [, ...counts] = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0]?.split(/\s+/).map(Number) ?? []
  const [user = 0, nice = 0, system = 0, , , interrupts = 0, softInterrupts = 0, stolen = 0] = counts
  return { stolen, wanted: user + nice + system + interrupts + softInterrupts + stolen }
}

/**
 * Begins to count milliseconds, and tells them when it is asked. What a hypervisor takes from all cores meanwhile does not count:
 * who waits for one core after another waits for each. For bounds that an answer must keep; a wait that must not be shorter is
 * measured by the clock.
 */
export function stopwatch(): () => number {
  const startedAt = performance.now()
  const before = ticks()
  return () => Math.max(0, performance.now() - startedAt - (ticks().stolen - before.stolen) * tickMs)
}

/** Tells, when it is asked, what share of the CPU that was wanted since has been taken away. */
export function watchStolen(): () => number {
  const before = ticks()
  return () => {
    const after = ticks()
    // nothing is taken from who wants nothing
    return (after.stolen - before.stolen) / Math.max(1, after.wanted - before.wanted)
  }
}

/** Tells, when it is asked, whether too much has been taken away since. */
export function watchMachine(): () => boolean {
  const stolenShare = watchStolen()
  return () => stolenShare() > tolerable
}

function isShortOfTime(): boolean {
  const wasShort = watchMachine()
  for (const end = performance.now() + spinMs; performance.now() < end; );
  return wasShort()
}

/** Resolves when the machine lets this process work. All calls together wait for ten minutes at most. */
export async function untilMachineHasTime(): Promise<void> {
  for (; looksLeft > 0 && isShortOfTime(); looksLeft--) await sleep(pauseMs)
}

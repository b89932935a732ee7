import { existsSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

/** Of a core that we wanted, what a hypervisor may give to others before what runs here no longer keeps its bounds. */
const tolerable = 0.25
const spinMs = 2000
const pauseMs = 18_000
/** Of a whole run. */
let looksLeft = 30

/** Ticks of all cores, by Linux's own books: taken away by the hypervisor, and wanted at all. */
function ticks(): { stolen: number; wanted: number } {
  const [, ...counts] = readFileSync('/proc/stat', 'utf8').split('\n', 1)[0]?.split(/\s+/).map(Number) ?? []
  const [user = 0, nice = 0, system = 0, , , interrupts = 0, softInterrupts = 0, stolen = 0] = counts
  return { stolen, wanted: user + nice + system + interrupts + softInterrupts + stolen }
}

/** Nothing is stolen from who wants nothing, so it works meanwhile. */
function stolenShare(): number {
  const before = ticks()
  for (const end = performance.now() + spinMs; performance.now() < end; );
  const after = ticks()
  return (after.stolen - before.stolen) / Math.max(1, after.wanted - before.wanted)
}

/** Resolves when the machine lets this process work. All calls together wait for ten minutes at most. */
export async function untilMachineHasTime(): Promise<void> {
  if (!existsSync('/proc/stat')) return
  for (; looksLeft > 0 && stolenShare() > tolerable; looksLeft--) await sleep(pauseMs)
}

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

/** Ticks of each core, by Linux's own books: taken away by the hypervisor, and wanted at all. */
function ticksOfCores(): { stolen: number; wanted: number }[] {
  if (!existsSync('/proc/stat')) return []
  const lines = readFileSync('/proc/stat', 'utf8').match(/^cpu\d+ .*$/gm) ?? []
  return lines.map((line) => {
    const [, ...counts] = line.split(' ').map(Number)
    const [user = 0, nice = 0, system = 0, , , interrupts = 0, softInterrupts = 0, stolen = 0] = counts
    return { stolen, wanted: user + nice + system + interrupts + softInterrupts + stolen }
  })
}

/** The ticks of all cores since. */
const spentSince = (before: ReturnType<typeof ticksOfCores>) =>
  ticksOfCores().map(({ stolen, wanted }, core) => ({
    stolen: stolen - (before[core]?.stolen ?? 0),
    wanted: wanted - (before[core]?.wanted ?? 0)
  }))

/**
 * Begins to count milliseconds, and tells them when it is asked. What a hypervisor takes meanwhile from the core that has lost most
 * does not count; what it took from several at the same time passed once. For bounds that an answer must keep; a wait that must not
 * be shorter is measured by the clock.
 */
export function stopwatch(): () => number {
  const startedAt = performance.now()
  const before = ticksOfCores()
  return () => {
    const worst = Math.max(0, ...spentSince(before).map(({ stolen }) => stolen))
    return Math.max(0, performance.now() - startedAt - worst * tickMs)
  }
}

/** Tells, when it is asked, what share of the CPU that was wanted since has been taken away. */
export function watchStolen(): () => number {
  const before = ticksOfCores()
  return () => {
    const spent = spentSince(before)
    const sum = (key: 'stolen' | 'wanted') => spent.reduce((all, each) => all + each[key], 0)
    // nothing is taken from who wants nothing
    return sum('stolen') / Math.max(1, sum('wanted'))
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

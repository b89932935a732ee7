import { existsSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'

/** The share of wanted CPU time that a hypervisor may take away (steal) before bounds in time can't be kept. */
const tolerable = 0.25
/** The unit of /proc/stat: `getconf CLK_TCK` gives 100 ticks a second. */
const tickMs = 10
const spinMs = 2000
const pauseMs = 18_000
/** How often a whole run may still look for a quiet moment. */
let looksLeft = 30

/** The ticks of each core from /proc/stat: those stolen by the hypervisor, and all that were wanted. */
function ticksOfCores(): { stolen: number; wanted: number }[] {
  if (!existsSync('/proc/stat')) return []
  const lines = readFileSync('/proc/stat', 'utf8').match(/^cpu\d+ .*$/gm) ?? []
  return lines.map((line) => {
    const [, ...counts] = line.split(' ').map(Number)
    const [user = 0, nice = 0, system = 0, , , interrupts = 0, softInterrupts = 0, stolen = 0] = counts
    return { stolen, wanted: user + nice + system + interrupts + softInterrupts + stolen }
  })
}

/** The ticks of each core since `before`. */
const spentSince = (before: ReturnType<typeof ticksOfCores>) =>
  ticksOfCores().map(({ stolen, wanted }, core) => ({
    stolen: stolen - (before[core]?.stolen ?? 0),
    wanted: wanted - (before[core]?.wanted ?? 0)
  }))

/**
 * Starts a stopwatch. The function that it returns gives the milliseconds since, without the time that the hypervisor
 * has stolen from the core that lost most. Time stolen from several cores at once is subtracted once.
 *
 * Use it for upper bounds. Measure a wait that must not be too short by the clock.
 */
export function stopwatch(): () => number {
  const startedAt = performance.now()
  const before = ticksOfCores()
  return () => {
    const worst = Math.max(0, ...spentSince(before).map(({ stolen }) => stolen))
    return Math.max(0, performance.now() - startedAt - worst * tickMs)
  }
}

/** Returns a function that gives the share of the wanted CPU time that was stolen since. */
export function watchStolen(): () => number {
  const before = ticksOfCores()
  return () => {
    const spent = spentSince(before)
    const sum = (key: 'stolen' | 'wanted') => spent.reduce((all, each) => all + each[key], 0)
    // no time was stolen if none was wanted
    return sum('stolen') / Math.max(1, sum('wanted'))
  }
}

/** Returns a function that says whether too much CPU time was stolen since. */
export function watchMachine(): () => boolean {
  const stolenShare = watchStolen()
  return () => stolenShare() > tolerable
}

function isShortOfTime(): boolean {
  const wasShort = watchMachine()
  for (const end = performance.now() + spinMs; performance.now() < end; );
  return wasShort()
}

/**
 * Resolves when the hypervisor leaves this process enough CPU time. All calls of a run together wait for ten minutes at
 * most.
 */
export async function untilMachineHasTime(): Promise<void> {
  for (; looksLeft > 0 && isShortOfTime(); looksLeft--) await sleep(pauseMs)
}

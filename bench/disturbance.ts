import { setTimeout as sleep } from 'node:timers/promises'
import { watchStolen } from '../test/machine.ts'

/*
 * Repeats measurements that a hypervisor disturbed. CPU time that goes to other virtual machines (steal time) falsifies
 * a measurement, and a pair of measurements is then not comparable.
 */

/** The share of the demanded CPU time that may be stolen before a measurement is repeated. */
const tolerable = 0.05
const pauseMs = 3000
/** The repeats left in a run, so that a run on an always disturbed machine ends too. */
let repeatsLeft = 60
const seen = { measured: 0, disturbed: 0 }

/** Measures until a measurement is undisturbed, at most `tries` times. Resolves to the least disturbed result. */
export async function undisturbed<T>(measure: () => Promise<T>, tries: number): Promise<T> {
  let best: { result: T; stolen: number } | undefined
  for (let left = tries; ; left--) {
    const stolenShare = watchStolen()
    const result = await measure()
    const stolen = stolenShare()
    if (!best || stolen < best.stolen) best = { result, stolen }
    if (best.stolen <= tolerable || left <= 1 || repeatsLeft-- <= 0) break
    await sleep(pauseMs)
  }
  seen.measured++
  if (best.stolen > tolerable) seen.disturbed++
  return best.result
}

/** A sentence for the report; empty when nothing was disturbed. */
export function describeDisturbance(): string {
  if (seen.disturbed === 0) return ''
  return `In ${seen.disturbed} of ${seen.measured} measurements a hypervisor took more than ${tolerable * 100} % of the CPU.`
}

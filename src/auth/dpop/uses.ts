import { nonceSeconds } from './nonces.ts'

/** Whether a proof is used for the first time. `outdated`: that is not known any more, and a newer nonce is needed. */
export type ProofUse = 'first' | 'repeated' | 'outdated'

export type ProofUses = {
  /** Tells what a use of a proof would be now, and uses nothing up. `second` is when its nonce was issued. */
  find(id: string, second: number, now?: number): ProofUse
  /** Uses a proof up. */
  use(id: string, second: number, now?: number): ProofUse
  /** Forgets all proofs, and refuses the nonces of all seconds up to this one. */
  forgetAll(now?: number): void
  /** The oldest second whose nonces are taken. It may be one to come. */
  oldestSecond(): number
  size(): number
}

/**
 * Remembers the proofs that were used, for as long as their nonces are good, and `max` of them at most.
 *
 * When there are more, those with the oldest nonces are forgotten, and these nonces are refused from then on. So no flood
 * of proofs lets one be used twice, and it costs the others a new nonce only. Nonces from before the start are refused for
 * the same reason: nobody knows what was used then.
 */
export function createProofUses(max: number, startedAt = Date.now()): ProofUses {
  const bySecond = new Map<number, Set<string>>()
  let forgottenThrough = Math.floor(startedAt / 1000) - 1
  let sweptAt = 0
  let size = 0

  function forget(second: number): void {
    size -= bySecond.get(second)?.size ?? 0
    bySecond.delete(second)
    forgottenThrough = Math.max(forgottenThrough, second)
  }

  function forgetThrough(through: number): void {
    for (const second of [...bySecond.keys()]) if (second <= through) forget(second)
  }

  function sweep(now: number): void {
    const through = Math.floor(now / 1000) - nonceSeconds
    if (sweptAt === through) return
    sweptAt = through
    forgetThrough(through)
  }

  function find(id: string, second: number, now = Date.now()): ProofUse {
    sweep(now)
    if (second <= forgottenThrough) return 'outdated'
    return bySecond.get(second)?.has(id) ? 'repeated' : 'first'
  }

  return {
    find,
    use(id, second, now = Date.now()) {
      const found = find(id, second, now)
      if (found !== 'first') return found
      if (size >= max) {
        forget(Math.min(...bySecond.keys()))
        if (second <= forgottenThrough) return 'outdated'
      }
      let used = bySecond.get(second)
      if (!used) {
        used = new Set()
        bySecond.set(second, used)
      }
      used.add(id)
      size++
      return 'first'
    },
    forgetAll(now = Date.now()) {
      const through = Math.floor(now / 1000)
      forgetThrough(through)
      forgottenThrough = Math.max(forgottenThrough, through)
    },
    oldestSecond: () => forgottenThrough + 1,
    size: () => size
  }
}

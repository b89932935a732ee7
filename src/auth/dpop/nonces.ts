import { createHmac, timingSafeEqual } from 'node:crypto'
import { LRUCache } from 'lru-cache'
import { deriveKey, type KeyRing } from '../../keys.ts'
import { clockToleranceSeconds } from '../token-life.ts'

/** How long a nonce is good. A proof is as old as its nonce at most, so nobody can sign proofs for later. */
export const nonceSeconds = 180
/** A reply to a nonce that is older brings a new one, so that a client that goes on is never asked to repeat a request. */
export const nonceRenewalSeconds = 60

const sizes = { time: 6, mac: 16 }
const nonceLength = Math.ceil(((sizes.time + sizes.mac) * 4) / 3)

export type ProofNonces = {
  /** The nonce of this second. */
  issue(now?: number): string
  /** The second in which one of the processes issued a nonce. Undefined when none has, and when it is too old. */
  read(nonce: string, now?: number): number | undefined
}

/**
 * Issues the nonces of proofs: a time and its MAC. Nothing is stored, and each process reads the nonces of all.
 *
 * A nonce takes the place of the time that a proof names, because clocks of phones may be wrong (RFC 9449, 11.1).
 */
export function createProofNonces({ first, byId }: KeyRing): ProofNonces {
  const macKeys = [first, ...[...byId.values()].filter((key) => key !== first)].map(({ secret }) =>
    deriveKey(secret, 'dpop nonce')
  )
  // there are no more seconds than those in which a nonce is good
  const bySecond = new LRUCache<number, Buffer[]>({ max: nonceSeconds + clockToleranceSeconds + 1 })

  /** The nonces of one second: one of each key, the signing key's first. */
  function noncesOf(second: number): Buffer[] {
    const known = bySecond.get(second)
    if (known) return known
    const time = Buffer.alloc(sizes.time)
    time.writeUIntBE(second, 0, sizes.time)
    const made = macKeys.map((key) => {
      const mac = createHmac('sha256', key).update(time).digest().subarray(0, sizes.mac)
      return Buffer.from(Buffer.concat([time, mac]).toString('base64url'))
    })
    bySecond.set(second, made)
    return made
  }

  return {
    issue(now = Date.now()) {
      return String(noncesOf(Math.floor(now / 1000))[0])
    },
    read(nonce, now = Date.now()) {
      if (nonce.length !== nonceLength) return undefined
      const given = Buffer.from(nonce)
      const second = Buffer.from(nonce, 'base64url').readUIntBE(0, sizes.time)
      const age = now / 1000 - second
      if (age >= nonceSeconds || age < -clockToleranceSeconds) return undefined
      // a character of several bytes makes it longer
      const isOurs = noncesOf(second).some((each) => each.length === given.length && timingSafeEqual(each, given))
      return isOurs ? second : undefined
    }
  }
}

import { randomBytes, scrypt } from 'node:crypto'

const length = 9
/** 16 MiB and some 40 ms for each guess, so that a weak password can't be found from its fingerprint in bulk. */
const cost = { N: 16_384, r: 8, p: 1 }
const maxKnown = 1000

const known = new Map<string, Promise<string>>()

/** A salt for the fingerprints of one process. */
export const newFingerprintSalt = () => randomBytes(12).toString('base64url')

/**
 * Names a secret without revealing it: with one salt, equal fingerprints mean equal values of one setting. Operators compare
 * what a process uses with what a file has. Each process has a salt of its own, so that fingerprints of two installations say
 * nothing about each other, and none can be computed in advance.
 */
export function fingerprint(salt: string, name: string, value: string): Promise<string> {
  const key = `${salt}\0${name}\0${value}`
  const before = known.get(key)
  if (before) return before
  if (known.size >= maxKnown) known.clear()
  const made = new Promise<string>((resolve, reject) =>
    scrypt(value, `aggios fingerprint ${name} ${salt}`, length, cost, (err, digest) =>
      err ? reject(err) : resolve(digest.toString('base64url'))
    )
  )
  known.set(key, made)
  return made
}

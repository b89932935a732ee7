import { scrypt } from 'node:crypto'

const length = 9
/** 16 MiB and some 40 ms for each guess, so that a weak password can't be found from its fingerprint in bulk. */
const cost = { N: 16_384, r: 8, p: 1 }
const maxKnown = 1000

const known = new Map<string, Promise<string>>()

/**
 * Names a secret without revealing it: equal fingerprints mean equal values of one setting. Operators compare what a process
 * uses with what a file has.
 */
export function fingerprint(name: string, value: string): Promise<string> {
  const key = `${name}\0${value}`
  const before = known.get(key)
  if (before) return before
  if (known.size >= maxKnown) known.clear()
  const made = new Promise<string>((resolve, reject) =>
    scrypt(value, `aggios fingerprint ${name}`, length, cost, (err, digest) =>
      err ? reject(err) : resolve(digest.toString('base64url'))
    )
  )
  known.set(key, made)
  return made
}

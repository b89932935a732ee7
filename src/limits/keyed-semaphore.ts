import { ExpectedError } from '../expected-error.ts'

/** Thrown to who holds all that they may, when as many wait for it as may wait, or they have waited too long. */
export class ShareExhausted extends ExpectedError {}

type Owner = { held: number; waiting: (() => void)[] }

/**
 * Lets each owner have at most `width` jobs running at once. A job may have several owners, a person and their agency say: it
 * counts for each of them, and waits for one after the other in their order.
 *
 * One more waits for the owner's own to finish, for `patienceMs` at most in all and behind `depth` at most; owners never wait for
 * each other. Remembers only owners who have something running.
 */
export function createShares({ width, depth, patienceMs }: { width: number; depth: number; patienceMs: number }) {
  const owners = new Map<string, Owner>()

  async function run<T>(names: readonly string[], job: () => Promise<T>): Promise<T> {
    let taken = 0
    let until = 0
    try {
      for (const name of names) {
        const owner = owners.get(name) ?? { held: 0, waiting: [] }
        owners.set(name, owner)
        if (owner.held < width) owner.held++
        else {
          until ||= performance.now() + patienceMs
          await wait(owner, until - performance.now())
        }
        taken++
      }
      return await job()
    } finally {
      while (taken > 0) giveBack(names[--taken] as string)
    }
  }

  function giveBack(name: string): void {
    const owner = owners.get(name) as Owner
    const next = owner.waiting.shift()
    // the place is handed over, not given back, so that nobody slips in between
    if (next) next()
    else if (--owner.held === 0) owners.delete(name)
  }

  function wait({ waiting }: Owner, forMs: number): Promise<void> {
    if (waiting.length >= depth) throw new ShareExhausted('too many wait for their share')
    return new Promise((resolve, reject) => {
      const start = () => {
        clearTimeout(patience)
        resolve()
      }
      const giveUp = () => {
        const place = waiting.indexOf(start)
        if (place === -1) return
        waiting.splice(place, 1)
        reject(new ShareExhausted('the share stayed taken'))
      }
      // a busy event loop fires timers before it reads what would have ended the wait
      const patience = setTimeout(() => setImmediate(giveUp), forMs)
      waiting.push(start)
    })
  }

  return { run, size: () => owners.size }
}

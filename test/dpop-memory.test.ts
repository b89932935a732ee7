import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t from 'tap'
import { maxProofUses } from '../plugins/auth/proof-uses.ts'
import { createProofNonces, nonceSeconds } from '../src/auth/dpop/nonces.ts'
import { createProofReader } from '../src/auth/dpop/proofs.ts'
import { createProofUses } from '../src/auth/dpop/uses.ts'
import { createKeyRing } from '../src/keys.ts'
import { createProofKey, makeProof } from './dpop.ts'

/*
 * What proofs cost in memory (DPoP, RFC 9449), and that no flood of them lets one be used twice.
 */

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void
/** The memory that the work has left behind, in MiB. */
function kept(work: () => void): number {
  collectGarbage()
  const { heapUsed } = process.memoryUsage()
  work()
  collectGarbage()
  return (process.memoryUsage().heapUsed - heapUsed) / 1024 ** 2
}
let count = 0
const id = () => String(count++).padStart(22, 'x')
const start = 1_800_000_000

t.test('half a million proofs in three minutes', async (t) => {
  const uses = createProofUses(maxProofUses, start * 1000)
  const answers = { first: 0, repeated: 0, outdated: 0 }
  const seen: { id: string; second: number }[] = []
  let largest = 0
  const mebibytes = kept(() => {
    for (let n = 0; n < 500_000; n++) {
      const second = start + Math.floor((n * nonceSeconds) / 500_000)
      const proof = { id: id(), second }
      answers[uses.use(proof.id, second, second * 1000)]++
      if (n % 1000 === 0) seen.push(proof)
      largest = Math.max(largest, uses.size())
    }
  })
  t.equal(answers.first, 500_000, 'all with the newest nonce are accepted')
  t.ok(largest <= maxProofUses, `${largest} are remembered at most`)
  t.ok(mebibytes < 24, `in ${mebibytes.toFixed(1)} MiB`)
  const now = (start + nonceSeconds - 1) * 1000
  const again = seen.map((proof) => uses.use(proof.id, proof.second, now))
  t.notOk(again.includes('first'), 'and none is accepted again, remembered or not')
  t.ok(again.includes('repeated'))
  t.ok(again.includes('outdated'))
  t.equal(uses.use(id(), start + nonceSeconds - 1, now), 'first', 'whoever takes a new nonce goes on')
  t.equal(uses.use(id(), start + nonceSeconds * 3, (start + nonceSeconds * 3) * 1000), 'first')
  t.equal(uses.size(), 1, 'later all of them are forgotten')
})

t.test('nonces of all ages at once, in a small memory', async (t) => {
  const uses = createProofUses(100, (start - nonceSeconds) * 1000)
  const accepted: { id: string; second: number }[] = []
  let repeated = 0
  for (let n = 0; n < 20_000; n++) {
    const proof = { id: id(), second: start - ((n * 7919) % nonceSeconds) }
    if (uses.use(proof.id, proof.second, start * 1000) === 'first') accepted.push(proof)
    // one that was accepted before, from time to time
    const old = accepted[(n * 31) % accepted.length]
    if (old && uses.use(old.id, old.second, start * 1000) === 'first') repeated++
  }
  t.ok(accepted.length > 100)
  t.equal(repeated, 0, 'none is accepted again')
  t.ok(uses.size() <= 100)
  t.equal(uses.use(id(), start + 1, (start + 1) * 1000), 'first', 'the next nonce is accepted')
})

t.test('a process that has just started takes no nonce from before', async (t) => {
  const uses = createProofUses(100, start * 1000)
  t.equal(uses.use(id(), start - 1, start * 1000), 'outdated')
  t.equal(uses.use(id(), start, start * 1000), 'first')
})

t.test('a memory that others have lost', async (t) => {
  const uses = createProofUses(100, start * 1000)
  const now = (start + 10) * 1000
  const [used, unused] = [id(), id()]
  t.equal(uses.use(used, start + 10, now), 'first')
  t.equal(uses.find(used, start + 10, now), 'repeated')
  t.equal(uses.find(unused, start + 10, now), 'first', 'a look uses nothing up')
  t.equal(uses.find(unused, start + 10, now), 'first')
  uses.forgetAll(now)
  t.equal(uses.size(), 0)
  for (const proof of [used, unused]) t.equal(uses.find(proof, start + 10, now), 'outdated')
  t.equal(uses.oldestSecond(), start + 11, 'the nonce that is issued then is of the next second')
  t.equal(uses.use(id(), uses.oldestSecond(), now), 'first')
})

t.test('the keys of strangers leave nothing behind', async (t) => {
  const nonces = createProofNonces(createKeyRing(['a secret of this test that is long enough'], 'dpop nonce'))
  const reader = createProofReader(nonces, { keys: 100 })
  const request = { method: 'GET', origin: 'http://localhost', url: '/', token: undefined }
  const make = () => makeProof(createProofKey(), { method: 'GET', url: 'http://localhost/', nonce: nonces.issue() })
  t.hasProp(reader.read(make(), request), 'key_thumbprint')
  t.match(reader.read(`${make().slice(0, -6)}AAAAAA`, request), { fault: 'invalid', detail: 'the signature is wrong' })
  // 0.3 if all of them were remembered
  const grow = (proofs: string[]) =>
    kept(() => {
      for (const proof of proofs) reader.read(proof, request)
    })
  const rounds = Array.from({ length: 4 }, () => grow(Array.from({ length: 1000 }, make)))
  const least = Math.min(...rounds.slice(1))
  t.ok(least < 0.1, `1,000 more keys are remembered in ${least.toFixed(2)} MiB more`)
})

t.test('nonces', async (t) => {
  const [old, young] = ['the older secret of this test, long enough', 'the newer secret of this test, long enough']
  const nonces = createProofNonces(createKeyRing([young, old], 'dpop nonce'))
  const before = createProofNonces(createKeyRing([old], 'dpop nonce'))
  const now = start * 1000
  t.equal(nonces.read(nonces.issue(now), now), start)
  t.equal(nonces.issue(now), nonces.issue(now + 999), 'are the same for a second')
  t.not(nonces.issue(now), nonces.issue(now + 1000))
  t.equal(nonces.read(before.issue(now), now), start, 'stay good when the secret is rotated')
  t.equal(before.read(nonces.issue(now), now), undefined, 'and are of no use where the new secret is not known')
  t.equal(nonces.read(nonces.issue(now), now + nonceSeconds * 1000 - 1), start)
  t.equal(nonces.read(nonces.issue(now), now + nonceSeconds * 1000), undefined, 'are too old after their time')
  t.equal(nonces.read(nonces.issue(now), now - 59_000), start, 'may be of a process whose clock is ahead')
  t.equal(nonces.read(nonces.issue(now), now - 61_000), undefined, 'but not by more than a minute')
})

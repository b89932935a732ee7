import t from 'tap'
import { createSecret, formatKey, parseKey } from '../src/auth/api-keys/key-format.ts'
import { createRandom } from './random.ts'
import { unknownId } from './requests.ts'

/*
 * API keys as text: src/auth/api-keys/key-format.ts.
 */

t.test('a key as text', async (t) => {
  const parts = { tenant_id: '019a2c4e-7b1d-7c3e-9f00-3d5a1b2c4d5e', id: unknownId, secret: createSecret() }
  const key = formatKey(parts)
  t.match(key, /^agg_[0-9A-Za-z]{82}$/)
  t.strictSame(parseKey(key), parts)
  const [lowest, highest] = ['00', 'ff'].map((byte) =>
    byte.repeat(16).replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
  )
  for (const [id, byte] of [
    [lowest, 0],
    [highest, 255]
  ] as [string, number][]) {
    const extreme = { tenant_id: id, id, secret: Buffer.alloc(24, byte) }
    t.equal(formatKey(extreme).length, key.length, 'of one width, whatever is in it')
    t.strictSame(parseKey(formatKey(extreme)), extreme)
  }
  t.equal(parseKey(`agg_${'z'.repeat(76)}${'0'.repeat(6)}`), undefined)

  await t.test('of 100,000 mutants none is read as a key', async (t) => {
    const random = createRandom(20261130)
    const letters = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-.'
    const letter = () => letters[Math.floor(random() * letters.length)] as string
    let read = 0
    for (let i = 0; i < 100_000; i++) {
      const at = Math.floor(random() * key.length)
      const more = Math.floor(random() * key.length)
      const changes = [
        () => key.slice(0, at) + letter() + key.slice(at + 1),
        () => key.slice(0, at) + key.slice(at + 1),
        () => key.slice(0, at) + letter() + key.slice(at),
        () => key.slice(0, at) + (key[at + 1] ?? '') + key[at] + key.slice(at + 2),
        () => {
          const once = key.slice(0, at) + letter() + key.slice(at + 1)
          return once.slice(0, more) + letter() + once.slice(more + 1)
        }
      ]
      const mutant = (changes[i % changes.length] as () => string)()
      if (mutant !== key && parseKey(mutant) !== undefined) read++
    }
    t.equal(read, 0)
  })
})

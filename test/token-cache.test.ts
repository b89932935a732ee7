import t from 'tap'
import { createTokenCache } from '../src/auth/token-cache.ts'

const signature = 'S'.repeat(43)

t.test('a token is known by all of it', async (t) => {
  const memory = createTokenCache<{ name: string }>(2)
  const ada = { name: 'Ada' }
  memory.set(`head.ada.${signature}`, ada)
  for (const scheme of ['Bearer', 'bearer', 'BEARER']) t.equal(memory.find(`${scheme} head.ada.${signature}`), ada)

  const others = [
    `Bearer head.eve.${signature}`,
    `Bearer head.adas.${signature}`,
    `Bearer ead.ada.${signature}`,
    `Bearer  ead.ada.${signature}`,
    `Bearer head.ada.${signature}=`,
    `Bearer head.ada.${signature.slice(1)}s`,
    `Bearer ${signature}`,
    `Beorer head.ada.${signature}`,
    `head.ada.${signature}`,
    `Bearer head.ada.${signature} `,
    signature,
    ''
  ]
  for (const header of others) t.equal(memory.find(header), undefined, header)
})

t.test('of two with one signature the later is known, and none is taken for the other', async (t) => {
  const memory = createTokenCache<{ name: string }>(2)
  memory.set(`head.one.${signature}`, { name: 'one' })
  memory.set(`head.two.${signature}`, { name: 'two' })
  t.equal(memory.find(`Bearer head.one.${signature}`), undefined)
  t.strictSame(memory.find(`Bearer head.two.${signature}`), { name: 'two' })
})

t.test('no more are kept than may be', async (t) => {
  const memory = createTokenCache<{ number: number }>(100)
  const tokenOf = (number: number) => `head.${number}.${String(number).padStart(43, 's')}`
  for (let number = 0; number < 1000; number++) memory.set(tokenOf(number), { number })
  t.equal(memory.size(), 100)
  t.equal(memory.find(`Bearer ${tokenOf(899)}`), undefined)
  t.strictSame(memory.find(`Bearer ${tokenOf(900)}`), { number: 900 })
})

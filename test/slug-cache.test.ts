import t from 'tap'
import { createSlugCache } from '../src/tenancy/slug-cache.ts'

t.test('entries are kept by id and by slug', async (t) => {
  const acme = { id: '1', slug: 'acme' }
  const rival = { id: '2', slug: 'rival' }
  const third = { id: '3', slug: 'third' }
  const filled = () => {
    const cache = createSlugCache<{ id: string; slug: string }>(2)
    cache.keep(acme)
    cache.keep(rival)
    return cache
  }

  t.test('the same one is found both ways', async (t) => {
    const cache = filled()
    t.equal(cache.get('1'), acme)
    t.equal(cache.find('acme'), acme)
    t.equal(cache.get('acme'), undefined, 'a slug is no id')
    t.equal(cache.find('1'), undefined, 'nor an id a slug')
  })
  t.test('what was unused for longest goes, from both', async (t) => {
    const cache = filled()
    cache.keep(third)
    t.equal(cache.size(), 2)
    t.strictSame([cache.get('1'), cache.find('acme')], [undefined, undefined])
    t.strictSame([cache.find('rival'), cache.get('3')], [rival, third])
  })
  for (const [name, use] of [
    ['id', (cache: ReturnType<typeof filled>) => cache.get('1')],
    ['slug', (cache: ReturnType<typeof filled>) => cache.find('acme')]
  ] as const) {
    t.test(`what is used by ${name} stays`, async (t) => {
      const cache = filled()
      use(cache)
      cache.keep(third)
      t.strictSame([cache.find('acme'), cache.get('1')], [acme, acme])
      t.strictSame([cache.find('rival'), cache.get('2')], [undefined, undefined])
    })
  }
  t.test('what is forgotten by one name is gone by the other', async (t) => {
    const cache = filled()
    cache.forget('1')
    t.strictSame([cache.get('1'), cache.find('acme')], [undefined, undefined])
    cache.forgetSlug('rival')
    t.strictSame([cache.get('2'), cache.find('rival')], [undefined, undefined])
    cache.forget('1')
    cache.forgetSlug('nobody')
    t.equal(cache.size(), 0)
  })
  t.test('what is kept again is the newer one, by both names', async (t) => {
    const cache = filled()
    const newer = { ...acme }
    cache.keep(newer)
    t.equal(cache.get('1'), newer)
    t.equal(cache.find('acme'), newer)
    t.equal(cache.size(), 2)
  })
  t.test('whoever had a slug before takes it from nobody when it goes', async (t) => {
    const cache = filled()
    const heir = { id: '4', slug: 'acme' }
    cache.keep(heir)
    t.equal(cache.find('acme'), heir)
    cache.forget('1')
    t.equal(cache.find('acme'), heir)
    t.equal(cache.get('4'), heir)
  })
  t.test('many are kept, with the order of their uses', async (t) => {
    const cache = createSlugCache<{ id: string; slug: string }>(5000)
    const keep = (from: number, to: number) => {
      for (let i = from; i < to; i++) cache.keep({ id: String(i), slug: `s${i}` })
    }
    const isKept = (i: number) => cache.get(String(i)) !== undefined && cache.find(`s${i}`) !== undefined
    keep(0, 1999)
    t.ok(isKept(0), 'the oldest is used once more')
    keep(1999, 5000)
    t.equal(cache.size(), 5000)
    t.strictSame([0, 1, 1998, 4999].filter(isKept), [0, 1, 1998, 4999])
    keep(5000, 6000)
    t.equal(cache.size(), 5000)
    t.strictSame([0, 1, 2, 1001, 1002, 1998, 5999].filter(isKept), [0, 1, 1002, 1998, 5999], 'the least used are gone')
  })
  t.test('all can be forgotten, and it goes on', async (t) => {
    const cache = filled()
    cache.clear()
    t.strictSame([cache.size(), cache.get('1'), cache.find('rival')], [0, undefined, undefined])
    cache.keep(third)
    t.equal(cache.find('third'), third)
  })
})

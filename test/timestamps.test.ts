import pg from 'pg'
import t from 'tap'
import { readTimestamp } from '../db/gate/timestamps.ts'
import { withClient } from './databases.ts'
import { createTestDatabase } from './harness.ts'

const parseByPg = pg.types.getTypeParser(pg.types.builtins.TIMESTAMPTZ) as (text: string) => Date

t.test('times as PostgreSQL writes them', async (t) => {
  const { postgres } = await createTestDatabase(t)
  await withClient(postgres, async (client) => {
    for (const zone of ['UTC', 'Europe/London', 'America/Sao_Paulo', 'Asia/Kathmandu']) {
      await client.query(`set timezone = '${zone}'`)
      const { rows } = await client.query<{ text: string; ms: string }>(`
        select time::text as text, floor(extract(epoch from time) * 1000)::text as ms
        from (
          select timestamptz '0200-01-01 00:00Z' + random() * interval '11000 years' as time from generate_series(1, 2000)
          union all select date_trunc(unit, timestamptz '2026-11-22 21:55:47.123456Z')
            from unnest(array['second', 'milliseconds', 'microseconds', 'day', 'year']) unit
          union all select timestamptz '2026-11-22 21:55:47Z' + tail * interval '1 microsecond'
            from unnest(array[1, 10, 100, 1000, 10000, 100000, 999999]) tail
          union all select timestamptz '0099-06-01 12:00Z' union all select timestamptz '0044-03-15 12:00Z BC'
        ) times`)
      const wrong = rows.filter(({ text }) => readTimestamp(text).getTime() !== parseByPg(text).getTime())
      t.strictSame(wrong, [], `${rows.length} times in ${zone}, as pg reads them`)
      const early = rows.filter(({ text, ms }) => !text.endsWith('BC') && readTimestamp(text).getTime() !== Number(ms))
      t.strictSame(early, [], 'and what they are')
    }
  })
  t.equal(readTimestamp('infinity') as unknown, Number.POSITIVE_INFINITY)
})

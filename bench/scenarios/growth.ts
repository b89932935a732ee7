import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import type { Bench, Scenario } from '../bench.ts'
import { adopt, scratch } from '../children.ts'
import { baseDomain, type Dataset, query, type Size } from '../database.ts'
import { filesFolder, root } from '../servers.ts'
import { median } from '../statistics.ts'

/*
 * What grows with the number of agencies, measured at several numbers and continued to a million.
 */

const counts = [10_000, 100_000, 300_000]
const continuedTo = 1_000_000
/** What is measured is the median of so many runs, each on a copy of its own. */
const runs = 3
/** Below this, what is measured is mostly the round trips that each piece of work has anyway. */
const floorMs = 50
/** What grows by a higher power of the number of agencies grows faster than they do. Above 1, because measurements vary. */
const mostPower = 1.15
/** What grows by a lower power does not grow with them. */
const leastPower = 0.15

/**
 * What a tenth of all agencies leave behind: in the last ten minutes two changes each, in the last day something that ended
 * tokens, and a row of each kind that has expired. What making the agencies has left to sweep goes first.
 */
const activity = `
truncate changes;
create temporary table active as
  select tenant_id, user_id, row_number() over (order by tenant_id) as number from memberships;
delete from active where number % 10 <> 0;
insert into audit_events (tenant_id, action, actor_id, created_at)
  select tenant_id, 'member.updated', user_id, now() - make_interval(secs => 61 + (number * 7 + each * 13) % 500)
  from active, generate_series(1, 2) each;
insert into changes (tenant_id, kind, subject, expires_at)
  select tenant_id, 'session', gen_random_uuid(), now() + interval '1 day' from active;
insert into changes (tenant_id, kind, subject, expires_at)
  select tenant_id, 'session', gen_random_uuid(), now() - interval '1 hour' from active;
insert into sessions (tenant_id, id, user_id, expires_at)
  select tenant_id, gen_random_uuid(), user_id, now() - interval '1 year' from active;
insert into idempotency_keys (tenant_id, user_id, route, key, fingerprint, status, headers, body, expires_at)
  select tenant_id, user_id, 'POST /files', 'old', sha256('a'), 201, '{}', '{}', now() - interval '1 hour' from active;
insert into invitations (tenant_id, id, email, role, invited_by, expires_at)
  select tenant_id, gen_random_uuid(), 'late@example.com', 'viewer', user_id, now() - interval '31 days' from active;
insert into outbox (tenant_id, kind, subject_id, generation, created_at, sent_at)
  select tenant_id, 'invitation', gen_random_uuid(), 1, now() - interval '1 year', now() - interval '1 year' from active;
drop table active`

/** One measured quantity, by the number of agencies. */
type Row = { name: string; unit: Unit; values: number[] }
type Unit = 'ms' | 'MB' | ''
type Measured = { value: number; unit: Unit }
/** What test/growth-worker.ts prints. */
type Growth = { ms: Record<string, number>; mb: Record<string, number> }

async function measureAt(bench: Bench, agencies: number): Promise<Map<string, Measured>> {
  const size: Size = { name: `bench_growth_${agencies}`, tenants: agencies, people: 1, sessions: 1_000 }
  const seeded = await bench.database.dataset(size)
  const all: Map<string, Measured>[] = []
  for (let run = 0; run < runs; run++) {
    const dataset = await bench.database.copy(seeded, size, 'bench_growth')
    all.push(await measureOnce(bench, dataset, agencies))
    await bench.database.drop(dataset)
  }
  return new Map(
    [...(all[0] as Map<string, Measured>)].map(([name, { unit }]) => [
      name,
      { value: median(all.map((each) => each.get(name)?.value ?? 0)), unit }
    ])
  )
}

async function measureOnce(bench: Bench, dataset: Dataset, agencies: number): Promise<Map<string, Measured>> {
  await query(dataset.urls.postgres, activity)
  await query(dataset.urls.postgres, 'vacuum analyze')
  await query(dataset.urls.postgres, 'checkpoint')
  const { ms, mb } = await runWorker(bench, dataset, agencies)
  const [seals = { rows: 0, kb: 0 }] = await query<{ rows: number; kb: number }>(
    dataset.urls.postgres,
    "select count(*)::int as rows, pg_total_relation_size('audit_seals')::float8 / 1024 as kb from audit_seals"
  )
  const measured = new Map<string, Measured>()
  for (const [name, value] of Object.entries(ms)) measured.set(name, { value, unit: 'ms' })
  for (const [name, value] of Object.entries(mb)) measured.set(`memory: ${name}`, { value, unit: 'MB' })
  measured.set('audit seals: rows', { value: seals.rows, unit: '' })
  measured.set('audit seals: size', { value: seals.kb / 1024, unit: 'MB' })
  return measured
}

/** Starts test/growth-worker.ts on a dataset, and resolves to what it measures. */
async function runWorker(bench: Bench, dataset: Dataset, agencies: number): Promise<Growth> {
  const [first] = dataset.users
  const prefix = /^(.*-)\d+\./.exec(first?.host ?? '')?.[1]
  if (prefix === undefined) throw new Error('the agencies of the dataset have other hosts than before')
  const child = adopt(
    spawn(process.execPath, ['--expose-gc', join(root, 'test', 'growth-worker.ts'), prefix, String(agencies)], {
      cwd: scratch,
      env: {
        PATH: process.env.PATH,
        NODE_ENV: 'production',
        ...bench.database.secrets,
        DATABASE_URL: dataset.urls.app,
        BASE_DOMAIN: baseDomain,
        DATA_DIR: filesFolder
      },
      stdio: ['ignore', 'pipe', 'inherit']
    })
  )
  const [said, [code]] = await Promise.all([text(child.stdout), once(child, 'exit')])
  if (code !== 0) throw new Error(`the process with ${agencies} agencies ended with ${code}`)
  return JSON.parse(said)
}

/** The power of the number of agencies by which something grows, between the least and the largest number. */
const powerOf = (values: readonly number[]) =>
  Math.log((values.at(-1) as number) / (values[0] as number)) /
  Math.log((counts.at(-1) as number) / (counts[0] as number))

/** The value at a million by the line through the last two points. */
function continued(values: readonly number[]): number {
  const [[n1, n2], [v1, v2]] = [counts.slice(-2), values.slice(-2)] as [[number, number], [number, number]]
  return v2 + ((v2 - v1) / (n2 - n1)) * (continuedTo - n2)
}

function markdown(rows: readonly Row[]): string {
  const number = (value: number) => value.toLocaleString('en', { maximumSignificantDigits: 3 })
  const head = ['what', ...counts.map(number), `${number(continuedTo)}, continued`, 'grows']
  const lines = rows.map(({ name, unit, values }) => {
    const show = (value: number) => `${number(value)} ${unit}`.trimEnd()
    const grows = growthOf({ name, unit, values })
    return [name, ...values.map(show), grows === 'not' ? '' : show(continued(values)), grows]
  })
  return [head, head.map(() => '---'), ...lines].map((cells) => `| ${cells.join(' | ')} |`).join('\n')
}

function growthOf({ unit, values }: Row): string {
  if (unit === 'ms' && values.every((value) => value < floorMs)) return 'not'
  const power = powerOf(values)
  return power < leastPower ? 'not' : power <= mostPower ? 'with them' : 'faster than they do'
}

export const growth: Scenario = {
  name: 'growth',
  about: `jobs, memory and seals of ${counts.map((count) => count.toLocaleString('en')).join(', ')} agencies`,
  inQuick: false,
  async run(bench) {
    const measured: Map<string, Measured>[] = []
    for (const agencies of counts) measured.push(await measureAt(bench, agencies))
    const rows = [...(measured[0]?.keys() ?? [])].map((name): Row => {
      const found = measured.map((each) => each.get(name))
      return { name, unit: found[0]?.unit ?? '', values: found.map((each) => each?.value ?? Number.NaN) }
    })
    process.stdout.write(`\n${markdown(rows)}\n\n`)
    for (const row of rows) {
      if (growthOf(row) === 'not') continue
      bench.figure({
        name: `growth/${row.name}`,
        value: powerOf(row.values),
        unit: 'ratio',
        detail: 'power of the number of agencies'
      })
    }
  }
}

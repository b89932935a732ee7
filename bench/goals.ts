import type { Figure } from './bench.ts'

/** A performance goal, and the names of the figures that show it; see docs/performance.md. */
export type Goal = { text: string; figures: string[]; reached(value: number): boolean; wanted: string }

const atLeast = (bound: number) => ({ wanted: `>= ${bound}`, reached: (value: number) => value >= bound })
const atMost = (bound: number, unit = '') => ({
  wanted: `<= ${bound}${unit}`,
  reached: (value: number) => value <= bound
})

export const goals: Goal[] = [
  {
    text: 'CPU of a signed-in, isolated read x bare Fastify + pg named',
    figures: ['me/fastify-named/cpu'],
    ...atMost(0.4)
  },
  { text: 'the same x Hono on Bun + Bun.SQL', figures: ['me/hono-bun/cpu'], ...atMost(0.6) },
  { text: 'the same x Express 5 with one query', figures: ['me/express/cpu'], ...atMost(0.33) },
  { text: 'the same x NestJS with one query', figures: ['me/nest/cpu'], ...atMost(0.25) },
  { text: 'the same x Fastify that answers a constant', figures: ['me/floor/cpu'], ...atMost(1.6) },
  {
    text: 'CPU of a refusal (401, 429) x an answer',
    figures: ['refusals/no token/cpu', 'refusals/a forged token/cpu', 'refusals/over a limit/cpu'],
    ...atMost(0.8)
  },
  { text: 'CPU of the read from the database x bare Fastify + pg named', figures: ['me/database/cpu'], ...atMost(0.9) },
  { text: 'CPU of 90 % reads and 10 % writes x READ_MEMORY=off', figures: ['mix/cpu'], ...atMost(0.7) },
  { text: 'CPU of a read with an API key x with the token of a person', figures: ['keys/cpu'], ...atMost(1.05) },
  {
    text: 'p99 of webhooks beside an endpoint that never answers x beside one that does',
    figures: ['webhooks/p99'],
    ...atMost(1.1)
  },
  { text: 'row security on x off', figures: ['rls'], ...atLeast(0.9) },
  { text: 'refresh rotations x a naive transaction', figures: ['refresh'], ...atLeast(2) },
  { text: 'refresh rotations a second', figures: ['refresh/rate'], ...atLeast(600) },
  { text: 'sign-ins a second x those by argon2', figures: ['hashing/sign-ins'], ...atLeast(1.8) },
  { text: 'refreshes a second x the version before', figures: ['version/refresh'], ...atLeast(0.97) },
  { text: 'read p50 under 50 sign-ins x idle', figures: ['pressure/p50'], ...atMost(1.2) },
  { text: 'read p99 under 50 sign-ins x idle', figures: ['pressure/p99'], ...atMost(2) },
  { text: 'CPU a request, 100,000 x 1,000 tenants', figures: ['tenants/cpu'], ...atMost(1.1) },
  { text: 'start to first reply, warm', figures: ['start'], ...atMost(1000, ' ms') },
  {
    text: 'memory per 1,000 tenants and per 1,000 sessions',
    figures: ['memory/1,000 tenants', 'memory/1,000 sessions'],
    wanted: 'bounded',
    // caches hold at most 150,000 tenants and as many quotas of tenants and of people, 0.3 KB each, and 20,000 tokens
    // of 1 KB: 140 MB
    reached: (kilobytes) => kilobytes <= 2000
  }
]

export type Verdict = { goal: Goal; figures: Figure[]; verdict: 'reached' | 'not reached' | 'not measured' }

export function judge(figures: readonly Figure[]): Verdict[] {
  return goals.map((goal) => {
    const found = goal.figures.flatMap((name) => figures.find((figure) => figure.name === name) ?? [])
    if (found.length < goal.figures.length) return { goal, figures: found, verdict: 'not measured' }
    const reached = found.every(({ value }) => goal.reached(value))
    return { goal, figures: found, verdict: reached ? 'reached' : 'not reached' }
  })
}

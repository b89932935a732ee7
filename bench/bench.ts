import type { Database, Dataset, Size } from './database.ts'
import type { LoadGenerator } from './load.ts'
import type { Conditions, Pair } from './pairs.ts'

/** One number that a scenario found. Ratios are printed by themselves in a quick run. */
export type Figure = {
  name: string
  value: number
  unit: 'ratio' | '/s' | 'ms' | 'µs' | 'MB' | 'KB' | '%'
  detail?: string
}

/** What a scenario may use, and where it reports to. */
export type Bench = {
  quick: boolean
  load: LoadGenerator
  database: Database
  /** 100,000 people in 1,000 agencies, and in 100,000. Built when first asked for. */
  thousand(): Promise<Dataset>
  hundredThousand(): Promise<Dataset>
  /** The first, without row security. */
  withoutRowSecurity(): Promise<Dataset>
  conditions(connections?: number): Conditions
  figure(figure: Figure): void
  pair(name: string, pair: Pair): void
  /** What could not be measured here, by name. */
  skip(name: string, reason: string): void
}

export type Scenario = { name: string; about: string; inQuick: boolean; run(bench: Bench): Promise<void> }

export const sizes = {
  thousand: { name: 'bench_1k', tenants: 1_000, people: 100, sessions: 20_000 },
  hundredThousand: { name: 'bench_100k', tenants: 100_000, people: 1, sessions: 20_000 }
} satisfies Record<string, Size>

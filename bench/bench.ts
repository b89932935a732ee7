import type { Database, Dataset, Size } from './database.ts'
import type { LoadGenerator } from './load.ts'
import type { Conditions, Pair } from './pairs.ts'

/** A measured number of a scenario. A quick run prints ratios only. */
export type Figure = {
  name: string
  value: number
  unit: 'ratio' | '/s' | 'ms' | 'µs' | 'MB' | 'KB' | '%'
  detail?: string
}

/** The tools of a scenario: load generator, database and datasets, and the methods that record its results. */
export type Bench = {
  quick: boolean
  load: LoadGenerator
  database: Database
  /** 100,000 people in 1,000 agencies. Built on first use. */
  thousand(): Promise<Dataset>
  /** 100,000 people in 100,000 agencies. Built on first use. */
  hundredThousand(): Promise<Dataset>
  /** The data of `thousand`, without row security. */
  withoutRowSecurity(): Promise<Dataset>
  conditions(connections?: number): Conditions
  figure(figure: Figure): void
  pair(name: string, pair: Pair): void
  /** Records that a figure can't be measured on this machine. */
  skip(name: string, reason: string): void
}

export type Scenario = { name: string; about: string; inQuick: boolean; run(bench: Bench): Promise<void> }

export const sizes = {
  thousand: { name: 'bench_1k', tenants: 1_000, people: 100, sessions: 20_000 },
  hundredThousand: { name: 'bench_100k', tenants: 100_000, people: 1, sessions: 20_000 }
} satisfies Record<string, Size>

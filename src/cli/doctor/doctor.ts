import { databaseChecks } from './database-checks.ts'
import {
  CannotLook,
  type Check,
  type Examination,
  type Facts,
  type Finding,
  type NotChecked,
  type Options,
  reasonOf,
  startExamination,
  within
} from './examination.ts'
import { kinds } from './findings.ts'
import type { Kind } from './kinds.ts'
import { machineChecks } from './machine-checks.ts'
import { outsideChecks } from './outside-checks.ts'
import { redisChecks } from './redis-checks.ts'
import { schemaChecks } from './schema-checks.ts'
import { settingsChecks } from './settings-checks.ts'
import { storeChecks } from './store-checks.ts'
import { upkeepChecks } from './upkeep-checks.ts'

/** What the doctor says about an installation. */
export type Report = {
  status: 'sound' | 'warnings' | 'errors'
  /** How many things were looked at. */
  checks: number
  findings: Finding[]
  not_checked: NotChecked[]
  facts: Facts
}

/** The checks of a part run one after the other, because they share a connection. Parts run at once. */
const checksOf = {
  settings: settingsChecks,
  machine: machineChecks,
  database: [...databaseChecks, ...schemaChecks, ...upkeepChecks],
  redis: redisChecks,
  store: storeChecks,
  services: outsideChecks
} satisfies Record<string, readonly Check[]>

/** A part of an installation. */
export type Part = keyof typeof checksOf
export const parts = Object.keys(checksOf) as Part[]

/**
 * Looks at everything that an operator can get wrong, and changes nothing. A check that takes too long or fails is
 * reported as not checked. Never rejects.
 */
export async function examine(
  options: Options,
  { atStart = false, only = parts }: { atStart?: boolean; only?: readonly Part[] } = {}
): Promise<Report> {
  const exam = startExamination(options)
  const chosen = only.map((part) => checksOf[part].filter((check: Check) => !atStart || check.atStart !== false))
  try {
    await Promise.all(chosen.map((checks) => runInTurn(exam, checks)))
  } finally {
    await exam.close().catch(() => {})
  }
  return reportOf(exam, chosen.flat().length)
}

async function runInTurn(exam: Examination, checks: readonly Check[]): Promise<void> {
  for (const { name, run } of checks) {
    try {
      await within(exam.limits.checkMs, Promise.resolve(run(exam)))
    } catch (err) {
      exam.skipped(name, err instanceof CannotLook ? err.message : reasonOf(err))
    }
  }
}

/** A report of problems that kept the settings from being read. Nothing else could be looked at. */
export function reportOfSettings(problems: readonly string[]): Report {
  const code = 'settings_invalid'
  return {
    status: 'errors',
    checks: 1,
    findings: problems.map((seen) => ({ code, seen, ...(kinds.get(code) as Kind) })),
    not_checked: [{ check: 'everything else', reason: 'the settings cannot be read' }],
    facts: {}
  }
}

function reportOf({ findings, notChecked, facts }: Examination, checks: number): Report {
  const rank = { error: 0, warning: 1 }
  const sorted = [...findings].sort((one, other) => rank[one.severity] - rank[other.severity])
  const status = sorted.length === 0 ? 'sound' : sorted[0]?.severity === 'error' ? 'errors' : 'warnings'
  return { status, checks, findings: sorted, not_checked: notChecked, facts }
}

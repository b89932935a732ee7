import type { Report } from './doctor.ts'
import { kinds } from './findings.ts'

/** The exit code of each status, so that a script need not read the report. */
export const exitCodes: Readonly<Record<Report['status'], number>> = { sound: 0, warnings: 3, errors: 4 }

/** A text of a service, without characters that a terminal would act on. */
const printable = (text: string) => text.replaceAll(/[^\x20-\x7e\u00a0-\uffff]/g, '?')

/** The report for a person. */
export function renderReport({ status, checks, findings, not_checked, facts }: Report): string {
  const lines = findings.flatMap(({ severity, code, title, seen, remedy, docs }) => [
    `${severity}: ${title} (${code})`,
    `  seen  ${printable(seen)}`,
    `  do    ${remedy}`,
    `  read  ${docs}`,
    ''
  ])
  for (const [service, known] of Object.entries(facts)) {
    lines.push(
      `${service}: ${Object.entries(known)
        .map(([name, value]) => `${name} ${value}`)
        .join(', ')}`
    )
  }
  for (const reason of new Set(not_checked.map((each) => each.reason))) {
    const names = not_checked.filter((each) => each.reason === reason).map(({ check }) => check)
    lines.push(`not checked, because ${printable(reason)}: ${names.join(', ')}`)
  }
  const count = (severity: string) => findings.filter((finding) => finding.severity === severity).length
  lines.push(
    `${status}: ${count('error')} errors, ${count('warning')} warnings; ${checks} checks, ${not_checked.length} not possible`
  )
  return lines.join('\n')
}

/** The table of everything that can be found, for docs/doctor.md. */
export function renderKinds(): string {
  const rows = [...kinds].map(([code, { severity, title, remedy, docs }]) => {
    const [, page = '', anchor = ''] = /^docs\/(.*)#(.*)$/.exec(docs) ?? []
    const link = page === 'doctor.md' ? `#${anchor}` : `${page}#${anchor}`
    return `| \`${code}\` | ${severity} | ${title} | ${remedy} | [more](${link}) |`
  })
  return ['| code | severity | what it means | what to do | |', '| --- | --- | --- | --- | --- |', ...rows].join('\n')
}

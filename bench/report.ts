import { readFileSync, writeFileSync } from 'node:fs'
import { cpus, totalmem } from 'node:os'
import { join } from 'node:path'
import type { Figure } from './bench.ts'
import { judge } from './goals.ts'
import type { Pair, Sample } from './pairs.ts'
import { plotRatios } from './plot.ts'
import { root } from './servers.ts'

/** The results of a run, in order of measurement. */
export type Findings = {
  figures: Figure[]
  pairs: { name: string; pair: Pair }[]
  skipped: { name: string; reason: string }[]
}

/** Formats a figure with about three significant digits. */
export function show({ value, unit }: Figure): string {
  if (unit === 'ratio') return value.toFixed(2)
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2
  return `${value.toFixed(digits)} ${unit}`.replace(' /s', '/s')
}

/** Formats a table with one line per row and aligned columns. */
export function textTable(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)))
  const line = (row: readonly string[]) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('  ')
  return rows.map((row) => line(row).trimEnd()).join('\n')
}

function markdownTable([head = [], ...rows]: readonly (readonly string[])[]): string {
  const line = (row: readonly string[]) => `| ${row.join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n')
}

export function pairRows({ pairs }: Findings): string[][] {
  const rest = ['CPU ratio', 'requests/s', 'CPU µs', 'PostgreSQL µs', 'p50 ms', 'p99 ms', 'MB']
  const text = (value: number, digits: number) => (Number.isNaN(value) ? '-' : value.toFixed(digits))
  const both = (a: Sample, b: Sample, key: keyof Sample, digits: number) =>
    `${text(a[key], digits)} : ${text(b[key], digits)}`
  return [
    ['scenario', 'ratio', 'of', 'to', ...rest],
    ...pairs.map(({ name, pair: { ratio, cpuRatio, first, second } }) => [
      name,
      ratio.median.toFixed(2),
      ratio.low.toFixed(2),
      ratio.high.toFixed(2),
      text(cpuRatio.median, 2),
      both(first, second, 'perSecond', 0),
      both(first, second, 'cpuUs', 0),
      both(first, second, 'databaseCpuUs', 0),
      both(first, second, 'p50', 1),
      both(first, second, 'p99', 1),
      both(first, second, 'memoryMb', 0)
    ])
  ]
}

export function figureRows({ figures }: Findings): string[][] {
  return [['figure', 'value', ''], ...figures.map((figure) => [figure.name, show(figure), figure.detail ?? ''])]
}

export function goalRows({ figures }: Findings): string[][] {
  return [
    ['goal', 'wanted', 'measured', ''],
    ...judge(figures).map(({ goal, figures, verdict }) => [
      goal.text,
      goal.wanted,
      figures.map(show).join(', '),
      verdict
    ])
  ]
}

export type Machine = { loadGenerator: string; postgres: string; conditions: string }

/** Describes the machine, the versions and the conditions. */
export function describeMachine({ loadGenerator, postgres, conditions }: Machine): string {
  const [cpu] = cpus()
  const memory = `${Math.round(totalmem() / 1024 ** 3)} GB`
  const { dependencies } = JSON.parse(readFileSync(join(import.meta.dirname, 'package.json'), 'utf8')) as {
    dependencies: Record<string, string>
  }
  const versions = ['fastify', 'pg', 'express', '@nestjs/core', 'hono', 'bun', 'kysely']
    .map((name) => `${name} ${dependencies[name]}`)
    .join(', ')
  return `${cpus().length} x ${cpu?.model.trim()}, ${memory}, ${process.platform}-${process.arch}; Node ${process.versions.node}, PostgreSQL ${postgres}, ${versions}; ${loadGenerator} on the same machine, ${conditions}.`
}

const page = join(root, 'docs', 'performance.md')
const plot = join(root, 'docs', 'performance.svg')
const measured = /(<!-- measured: written by npm run bench -->\n)[\s\S]*?(<!-- end -->)/

/** Writes the plot, and writes the tables into docs/performance.md between its two marks. */
export function writePage(findings: Findings, machine: string): void {
  const skipped = findings.skipped.map(({ name, reason }) => `Not measured: ${name}: ${reason}.`)
  const sections = [machine, markdownTable(goalRows(findings)), '![Ratios](performance.svg)']
  sections.push(markdownTable(pairRows(findings)), markdownTable(figureRows(findings)), ...skipped)
  const text = readFileSync(page, 'utf8')
  if (!measured.test(text)) throw new Error('docs/performance.md has lost its marks')
  writeFileSync(
    page,
    text.replace(measured, (_, begin, end) => `${begin}\n${sections.join('\n\n')}\n\n${end}`)
  )
  writeFileSync(plot, plotRatios(findings.pairs))
}

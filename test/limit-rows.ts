import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './harness.ts'

/*
 * The table of limits in docs/operations.md.
 */

const page = readFileSync(join(root, 'docs', 'operations.md'), 'utf8')

type Row = { what: string; value: string; over: string }

function rowsOf(heading: string): Row[] {
  const section = page.split(/^## /m).find((each) => each.startsWith(heading)) ?? ''
  const lines = section.split('\n').filter((line) => line.startsWith('|'))
  return lines.slice(2).map((line) => {
    const [what = '', value = '', over = ''] = line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim())
    return { what, value, over }
  })
}

export const rows = rowsOf('Limits and time-outs')
/** The rows that a test has read. */
export const read = new Set<string>()

/** The row that begins with this text. There must be one only. */
export function rowAbout(start: string): Row {
  const found = rows.filter(({ what }) => what.startsWith(start))
  if (found.length !== 1 || !found[0]) throw new Error(`${found.length} rows begin with "${start}"`)
  read.add(found[0].what)
  return found[0]
}

const unitMs = { s: 1000, ms: 1, min: 60_000 }

/** Every time in a text, in milliseconds. */
export function times(text: string): number[] {
  return [...text.matchAll(/(\d+) (ms|s|min)\b/g)].map(
    ([, count, unit]) => Number(count) * unitMs[unit as keyof typeof unitMs]
  )
}

/** Every size in a text, in bytes. */
export const sizes = (text: string) => [...text.matchAll(/(\d+) KiB/g)].map(([, count]) => Number(count) * 1024)

/*
 * What a process counts, as data, and the text that Prometheus reads of it (exposition format 0.0.4).
 */

export type Labels = Record<string, string>
/** `suffix` is for the parts of a histogram. */
export type Sample = { suffix?: '_bucket' | '_sum' | '_count'; labels?: Labels; value: number }
export type Family = { name: string; help: string; type: 'counter' | 'gauge' | 'histogram'; samples: Sample[] }

/** Counts of observations by bucket, not cumulative, the one above all bounds included; behind them the sum. */
export type Row = Float64Array

/**
 * Observations in fixed buckets. Each row is one array of numbers that is allocated once, so that observing allocates nothing
 * and costs some nanoseconds; everything else is done when somebody looks.
 */
export function createHistogram(bounds: readonly number[]) {
  const rows: { labels: Labels; row: Row }[] = []
  const sumAt = bounds.length + 1

  return {
    /** A series of its own. The caller bounds how many there can be. */
    row(labels: Labels): Row {
      const row = new Float64Array(bounds.length + 2)
      rows.push({ labels, row })
      return row
    },
    observe(row: Row, value: number): void {
      let bucket = 0
      while (bucket < bounds.length && value > (bounds[bucket] as number)) bucket++
      row[bucket] = (row[bucket] as number) + 1
      row[sumAt] = (row[sumAt] as number) + value
    },
    samples(): Sample[] {
      return rows.flatMap(({ labels, row }) => {
        let count = 0
        const buckets = [...bounds, Number.POSITIVE_INFINITY].map((bound, i): Sample => {
          count += row[i] as number
          return { suffix: '_bucket', labels: { ...labels, le: formatNumber(bound) }, value: count }
        })
        return [
          ...buckets,
          { suffix: '_sum', labels, value: row[sumAt] as number },
          { suffix: '_count', labels, value: count }
        ]
      })
    }
  }
}

/**
 * The families of several processes as one text. Each series carries the label `worker`, so that nothing of two processes is
 * ever one series and `sum without (worker)` is the whole.
 */
export function render(processes: readonly { worker: string; families: readonly Family[] }[]): string {
  const merged = new Map<string, { head: string; lines: string[] }>()
  for (const { worker, families } of processes) {
    for (const { name, help, type, samples } of families) {
      const known = merged.get(name)
      const family = known ?? { head: `# HELP ${name} ${escapeHelp(help)}\n# TYPE ${name} ${type}\n`, lines: [] }
      if (!known) merged.set(name, family)
      for (const { suffix = '', labels, value } of samples) {
        family.lines.push(`${name}${suffix}${formatLabels({ ...labels, worker })} ${formatNumber(value)}\n`)
      }
    }
  }
  return [...merged.values()].map(({ head, lines }) => head + lines.join('')).join('')
}

function formatLabels(labels: Labels): string {
  return `{${Object.entries(labels)
    .map(([name, value]) => `${name}="${escapeLabel(value)}"`)
    .join(',')}}`
}

function formatNumber(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return '+Inf'
  return value === Number.NEGATIVE_INFINITY ? '-Inf' : String(value)
}

const escapeHelp = (text: string) => text.replaceAll('\\', '\\\\').replaceAll('\n', '\\n')
const escapeLabel = (text: string) => escapeHelp(text).replaceAll('"', '\\"')

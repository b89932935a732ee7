/*
 * Metrics as data, and their text for Prometheus (exposition format 0.0.4).
 */

export type Labels = Record<string, string>
/** One line of the text. Only the lines of a histogram have a `suffix`. */
export type Sample = { suffix?: '_bucket' | '_sum' | '_count'; labels?: Labels; value: number }
/** A metric with all of its samples. */
export type Family = { name: string; help: string; type: 'counter' | 'gauge' | 'histogram'; samples: Sample[] }

/**
 * One series of a histogram: the counts of its buckets (not cumulative, the last one for values above all bounds), then
 * the sum.
 */
export type Series = Float64Array

/**
 * Creates a histogram with fixed buckets. Each series is one array of numbers that is allocated once, so that `observe`
 * allocates nothing and takes some nanoseconds. The rest of the work is done when the samples are read.
 */
export function createHistogram(bounds: readonly number[]) {
  const all: { labels: Labels; series: Series }[] = []
  const sumIndex = bounds.length + 1

  return {
    /** Adds a series. The caller bounds their number. */
    series(labels: Labels): Series {
      const series = new Float64Array(bounds.length + 2)
      all.push({ labels, series })
      return series
    },
    observe(series: Series, value: number): void {
      let bucket = 0
      while (bucket < bounds.length && value > (bounds[bucket] as number)) bucket++
      series[bucket] = (series[bucket] as number) + 1
      series[sumIndex] = (series[sumIndex] as number) + value
    },
    samples(): Sample[] {
      return all.flatMap(({ labels, series }) => {
        let count = 0
        const buckets = [...bounds, Number.POSITIVE_INFINITY].map((bound, i): Sample => {
          count += series[i] as number
          return { suffix: '_bucket', labels: { ...labels, le: formatNumber(bound) }, value: count }
        })
        return [
          ...buckets,
          { suffix: '_sum', labels, value: series[sumIndex] as number },
          { suffix: '_count', labels, value: count }
        ]
      })
    }
  }
}

/**
 * Renders the families of several processes as one text. Each series has the label `worker`, so that series of two
 * processes stay apart; `sum without (worker)` adds them up.
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

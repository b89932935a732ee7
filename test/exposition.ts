/*
 * Parses Prometheus' text format 0.0.4. It follows the specification, and is stricter where scrapers differ: anything
 * unusual throws.
 */

export type Series = { name: string; labels: Record<string, string>; value: number }
export type Exposition = {
  types: Map<string, string>
  series: Series[]
  /** The sum of all series with this name and these labels. Throws if there is none. */
  sum(name: string, labels?: Record<string, string>): number
  has(name: string, labels?: Record<string, string>): boolean
}

const sampleLine = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/
const labelPair = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(,|$)/y
const unescaped: Record<string, string> = { '\\\\': '\\', '\\"': '"', '\\n': '\n' }

function refuse(line: string, why: string): never {
  throw new Error(`${why}: ${line}`)
}

function parseLabels(text: string, line: string): Record<string, string> {
  const labels: Record<string, string> = {}
  labelPair.lastIndex = 0
  while (labelPair.lastIndex < text.length) {
    const [, name = '', value = '', end] = labelPair.exec(text) ?? refuse(line, 'labels')
    if (name in labels || name.startsWith('__')) refuse(line, `label ${name}`)
    labels[name] = value.replaceAll(/\\[\\"n]/g, (pair) => unescaped[pair] as string)
    if (end === ',' && labelPair.lastIndex === text.length) refuse(line, 'a comma at the end')
  }
  return labels
}

function parseValue(text: string, line: string): number {
  if (text === '+Inf') return Number.POSITIVE_INFINITY
  if (text === '-Inf') return Number.NEGATIVE_INFINITY
  if (!/^[+-]?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?$/.test(text)) refuse(line, 'not a number')
  return Number(text)
}

const matches = (series: Series, name: string, labels: Record<string, string>) =>
  series.name === name && Object.entries(labels).every(([key, value]) => series.labels[key] === value)

export function parseExposition(text: string): Exposition {
  if (!text.endsWith('\n')) throw new Error('the last line does not end')
  const types = new Map<string, string>()
  const helps = new Set<string>()
  const series: Series[] = []
  const seen = new Set<string>()
  let family = ''
  for (const line of text.slice(0, -1).split('\n')) {
    const comment = /^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/.exec(line)
    if (comment) {
      const [, kind, name = '', rest = ''] = comment
      if (kind === 'HELP') {
        if (helps.has(name) || /\\(?![\\n])/.test(rest.replaceAll('\\\\', ''))) refuse(line, 'a help')
        helps.add(name)
      } else {
        if (types.has(name) || !helps.has(name) || !/^(counter|gauge|histogram)$/.test(rest)) refuse(line, 'a type')
        types.set(name, rest)
        family = name
      }
      continue
    }
    const [, name = '', labelText = '', valueText = ''] = sampleLine.exec(line) ?? refuse(line, 'not a sample')
    const type = types.get(family) ?? refuse(line, 'before its type')
    const suffixes = type === 'histogram' ? ['_bucket', '_sum', '_count'] : ['']
    if (!suffixes.some((suffix) => name === family + suffix)) refuse(line, `not of ${family}`)
    const labels = parseLabels(labelText, line)
    const value = parseValue(valueText, line)
    if ('le' in labels !== name.endsWith('_bucket') || 'quantile' in labels) refuse(line, 'a label that has a meaning')
    if (type === 'counter' && !(name.endsWith('_total') && value >= 0)) refuse(line, 'a counter')
    const identity = `${name}${JSON.stringify(Object.entries(labels).sort())}`
    if (seen.has(identity)) refuse(line, 'twice')
    seen.add(identity)
    series.push({ name, labels, value })
  }
  for (const name of helps) if (!types.has(name)) throw new Error(`${name} has no type`)
  for (const [name, type] of types) if (type === 'histogram') checkHistogram(name, series)
  return {
    types,
    series,
    has: (name, labels = {}) => series.some((each) => matches(each, name, labels)),
    sum(name, labels = {}) {
      const found = series.filter((each) => matches(each, name, labels))
      if (found.length === 0) throw new Error(`there is no ${name} ${JSON.stringify(labels)}`)
      return found.reduce((sum, { value }) => sum + value, 0)
    }
  }
}

/** The buckets of a histogram must rise in bound and in count. The last one is +Inf, and has the value of `_count`. */
function checkHistogram(name: string, series: Series[]): void {
  const others = ({ le, ...labels }: Record<string, string>) => JSON.stringify(Object.entries(labels).sort())
  const counts = new Map(
    series.filter((each) => each.name === `${name}_count`).map(({ labels, value }) => [others(labels), value])
  )
  const sums = series.filter((each) => each.name === `${name}_sum`).map(({ labels }) => others(labels))
  const buckets = Map.groupBy(
    series.filter((each) => each.name === `${name}_bucket`),
    ({ labels }) => others(labels)
  )
  if (sums.length !== counts.size || buckets.size !== counts.size) throw new Error(`${name} is not whole`)
  for (const [labels, each] of buckets) {
    const bounds = each.map(({ labels: { le = '' } }) => parseValue(le, le))
    const rising = (values: number[], strictly: boolean) =>
      values.every(
        (value, i) => i === 0 || (strictly ? value > (values[i - 1] as number) : value >= (values[i - 1] as number))
      )
    const values = each.map(({ value }) => value)
    if (!rising(bounds, true) || !rising(values, false)) throw new Error(`${name}${labels} does not rise`)
    if (bounds.at(-1) !== Number.POSITIVE_INFINITY || values.at(-1) !== counts.get(labels)) {
      throw new Error(`${name}${labels} does not end in its count`)
    }
  }
}

import type { Dashboard, Panel, Unit } from './dashboard-panels.ts'

/** A series of Prometheus: pairs of a Unix time and a value. */
export type Line = { name: string; points: [time: number, value: number][] }

const panelWidth = 470
const panelHeight = 220
const gap = 12
const head = 46
const plot = { left: 58, right: 12, top: 30, bottom: 62 }
/** The largest series of a panel. More are not told apart. */
const maxLines = 6
const colours = ['#2f6fb5', '#b5542c', '#2f7d4f', '#8552a1', '#b08a1e', '#3b8f94', '#a33d5e', '#5c6470']

/** Draws a dashboard from the series of its panels, with the titles and units that Grafana shows. */
export function drawDashboard({ title, panels }: Dashboard, lines: Line[][], about: string): string {
  const rows = Math.ceil(panels.length / 2)
  const width = 2 * panelWidth + 3 * gap
  const height = head + rows * (panelHeight + gap)
  const drawn = panels.map((panel, index) => {
    const x = gap + (index % 2) * (panelWidth + gap)
    const y = head + Math.floor(index / 2) * (panelHeight + gap)
    const largest = (lines[index] ?? []).sort((a, b) => peak(b) - peak(a)).slice(0, maxLines)
    return `<g transform="translate(${x} ${y})">\n${drawPanel(panel, largest)}\n</g>`
  })
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="11" fill="#4b5058">
<title>${title}</title>
<rect width="100%" height="100%" fill="#f4f5f7"/>
<text x="${gap}" y="20" font-size="15" font-weight="bold">${title}</text>
<text x="${gap}" y="36">${escaped(about)}</text>
${drawn.join('\n')}
</svg>
`
}

function drawPanel({ title, unit }: Panel, lines: Line[]): string {
  const times = lines.flatMap(({ points }) => points.map(([time]) => time))
  const [start, end] = [Math.min(...times), Math.max(...times)]
  const top = niceTop(Math.max(...lines.flatMap(({ points }) => points.map(([, value]) => value))))
  const right = panelWidth - plot.right
  const bottom = panelHeight - plot.bottom
  const x = (time: number) => plot.left + ((right - plot.left) * (time - start)) / (end - start || 1)
  // as Grafana does with a minimum of 0: the first rates of a counter may be below it
  const y = (value: number) => bottom - ((bottom - plot.top) * Math.max(0, value)) / top
  const grid = [0, 0.5, 1].map((share) => {
    const at = y(share * top).toFixed(1)
    return `<line x1="${plot.left}" x2="${right}" y1="${at}" y2="${at}" stroke="#dfe2e6"/>
<text x="${plot.left - 6}" y="${Number(at) + 4}" text-anchor="end">${withUnit(share * top, unit)}</text>`
  })
  const minutes = [start, (start + end) / 2, end].map((time, index) => {
    const anchor = ['start', 'middle', 'end'][index]
    return `<text x="${x(time).toFixed(1)}" y="${bottom + 14}" text-anchor="${anchor}">${((time - start) / 60).toFixed(1)} min</text>`
  })
  const paths = lines.map(({ points }, index) => {
    const path = points.map(([time, value]) => `${x(time).toFixed(1)},${y(value).toFixed(1)}`).join(' ')
    return `<polyline points="${path}" fill="none" stroke="${colours[index % colours.length]}" stroke-width="1.5"/>`
  })
  let [column, row] = [plot.left, bottom + 29]
  const legend = lines.map(({ name }, index) => {
    const width = 18 + name.length * 5.6
    if (column + width > right && column > plot.left) [column, row] = [plot.left, row + 13]
    const at = column
    column += width
    return `<rect x="${at.toFixed(1)}" y="${row - 6}" width="9" height="3" fill="${colours[index % colours.length]}"/>
<text x="${(at + 12).toFixed(1)}" y="${row}" font-size="10">${escaped(name)}</text>`
  })
  return [
    `<rect width="${panelWidth}" height="${panelHeight}" fill="#ffffff" stroke="#dfe2e6"/>`,
    `<text x="12" y="18" font-weight="bold">${escaped(title)}</text>`,
    ...grid,
    ...minutes,
    ...paths,
    ...legend
  ].join('\n')
}

const peak = ({ points }: Line) => Math.max(...points.map(([, value]) => value))

/** The end of an axis: the next of 1, 2 or 5 times a power of ten. */
function niceTop(value: number): number {
  if (!(value > 0)) return 1
  const power = 10 ** Math.floor(Math.log10(value))
  return ([1, 2, 5, 10].find((step) => step * power >= value) ?? 10) * power
}

function withUnit(value: number, unit: Unit): string {
  const short = (number: number) => String(Number(number.toPrecision(2)))
  switch (unit) {
    case 's':
      return value < 1 ? `${short(value * 1000)} ms` : `${short(value)} s`
    case 'percentunit':
      return `${short(value * 100)} %`
    case 'bytes':
      return `${short(value / 2 ** 20)} MiB`
    case 'reqps':
      return `${short(value)} /s`
    case 'short':
      return short(value)
  }
}

const escaped = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')

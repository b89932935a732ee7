import type { Pair } from './pairs.ts'

const width = 760
const rowHeight = 26
const left = 250
const right = 70
const top = 34

/** Draws a bar for the median ratio of each pair and a line for its spread, on a logarithmic scale. */
export function plotRatios(pairs: readonly { name: string; pair: Pair }[]): string {
  const values = pairs.flatMap(({ pair: { ratio } }) => [ratio.low, ratio.high])
  const low = 2 ** Math.floor(Math.log2(Math.min(0.5, ...values)))
  const high = 2 ** Math.ceil(Math.log2(Math.max(2, ...values)))
  const x = (ratio: number) => left + ((width - left - right) * Math.log2(ratio / low)) / Math.log2(high / low)
  const bottom = top + pairs.length * rowHeight
  const ticks = Array.from({ length: Math.log2(high / low) + 1 }, (_, step) => low * 2 ** step)

  const grid = ticks.map((ratio) => {
    const dash = ratio === 1 ? '' : ' stroke-dasharray="2 3"'
    return `<line x1="${at(x(ratio))}" x2="${at(x(ratio))}" y1="${top - 6}" y2="${bottom}" stroke="#8a8f98"${dash}/>
<text x="${at(x(ratio))}" y="${top - 12}" text-anchor="middle">x${ratio}</text>`
  })
  const bars = pairs.map(({ name, pair: { ratio } }, row) => {
    const middle = top + row * rowHeight + rowHeight / 2
    const from = Math.min(x(1), x(ratio.median))
    const length = Math.abs(x(ratio.median) - x(1))
    const colour = ratio.median >= 1 ? '#2f7d4f' : '#b5542c'
    return `<text x="${left - 10}" y="${middle + 4}" text-anchor="end">${name}</text>
<rect x="${at(from)}" y="${middle - 7}" width="${at(length)}" height="14" fill="${colour}"/>
<line x1="${at(x(ratio.low))}" x2="${at(x(ratio.high))}" y1="${middle}" y2="${middle}" stroke="#8a8f98" stroke-width="2"/>
<text x="${width - right + 10}" y="${middle + 4}">${ratio.median.toFixed(2)}</text>`
  })
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${bottom + 12}" viewBox="0 0 ${width} ${bottom + 12}" font-family="sans-serif" font-size="12" fill="#4b5058">
<title>Requests per second by those of the other, median and spread of pairs</title>
<rect width="100%" height="100%" fill="#ffffff"/>
${[...grid, ...bars].join('\n')}
</svg>
`
}

const at = (position: number) => position.toFixed(1)

import { parseArgs } from 'node:util'
import { onSignals } from '../src/signals.ts'
import { createRandom } from './random.ts'
import { type FaultName, faults, startStand, tryFaults } from './stand.ts'

/*
 * `npm run faults -- --minutes 10 --seed 7`: rounds of two or three faults, drawn by the seed, while clients work.
 * After each round the ledger of the clients is judged. The seed of a round repeats it: --seed 12 --rounds 1.
 */

const { values: options } = parseArgs({
  options: { minutes: { type: 'string', default: '10' }, seed: { type: 'string' }, rounds: { type: 'string' } }
})
const firstSeed = Number(options.seed ?? Date.now() % 1_000_000)
const rounds = options.rounds === undefined ? Number.POSITIVE_INFINITY : Number(options.rounds)
const deadline = Date.now() + Number(options.minutes) * 60_000
const names = Object.keys(faults) as FaultName[]

const started: (() => unknown)[] = []
async function end(code: number): Promise<never> {
  for (const work of started.reverse()) await work()
  process.exit(code)
}
onSignals(
  () => end(130),
  () => process.exit(130)
)

const say = (line: string) => void process.stdout.write(`${line}\n`)
let broken = 0
let done = 0
let acknowledged = 0
try {
  const stand = await startStand({ teardown: (work) => started.push(work) }, { env: { DATABASE_POOL: '4' } })
  for (let seed = firstSeed; done < rounds && Date.now() < deadline; seed++, done++) {
    const random = createRandom(seed)
    const drawn = Array.from({ length: 2 + Math.floor(random() * 2) }, () => names[Math.floor(random() * names.length)])
    const round: (() => unknown)[] = []
    const outcome = await tryFaults({ teardown: (work) => round.push(work) }, stand, {
      seed,
      names: drawn as FaultName[],
      gapMs: 3000
    })
    for (const work of round.reverse()) await work()
    acknowledged += outcome.acknowledged
    if (outcome.problems.length > 0) broken++
    const { problems, ...figures } = outcome
    say(`seed ${seed}: ${drawn.join(', ')} ${JSON.stringify(figures)}${problems.map((each) => `\n  ${each}`).join('')}`)
  }
} catch (err) {
  broken++
  say(`after ${done} rounds: ${err instanceof Error ? err.stack : err}`)
}
say(
  `${done} rounds from seed ${firstSeed}, ${acknowledged} requests acknowledged, ${broken} rounds with a broken promise`
)
await end(broken === 0 ? 0 : 1)

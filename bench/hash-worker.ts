import { argv } from 'node:process'
import { packages } from '../src/auth/argon2.ts'
import { parameters } from '../src/auth/passwords.ts'

/*
 * Hashes passwords without a pause, two at a time, until SIGTERM. Then prints the rate and the CPU time per hash.
 *
 * node bench/hash-worker.ts <package>
 */

const width = 2
const [, , name] = argv
const all = await Promise.all(packages.map((load) => load()))
const argon2 = all.find((each) => each.name === name)
if (!argon2) throw new Error(`${name} is none of the packages that hash`)
const hashOnce = () => argon2.hash('correct horse battery', { ...parameters, secret: Buffer.from('a pepper') })

let made = 0
let ended = false
process.on('SIGTERM', () => {
  ended = true
})

async function work(): Promise<void> {
  while (!ended) {
    await hashOnce()
    made++
  }
}

await hashOnce()
process.stdout.write('ready\n')
const startedAt = performance.now()
const cpuBefore = process.cpuUsage()
await Promise.all(Array.from({ length: width }, work))
const { user, system } = process.cpuUsage(cpuBefore)
const seconds = (performance.now() - startedAt) / 1000
process.stdout.write(`${JSON.stringify({ perSecond: made / seconds, cpuMs: (user + system) / made / 1000 })}\n`)

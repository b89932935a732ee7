import { setPriority } from 'node:os'
import { argv } from 'node:process'
import { hash as hashByRust } from '@node-rs/argon2'
import argon2 from 'argon2'
import { parameters } from '../src/auth/passwords.ts'

/*
 * Hashes passwords without a pause, two at a time, until SIGTERM. Then prints the rate and the CPU time per hash.
 *
 * node bench/hash-worker.ts argon2|node-rs [niceness]
 */

const width = 2
const [, , library, niceness = '0'] = argv
const { memoryCost, timeCost, parallelism } = parameters
const secret = Buffer.from('a pepper')
const password = 'correct horse battery'
const hashOnce =
  library === 'node-rs'
    ? () => hashByRust(password, { memoryCost, timeCost, parallelism, secret })
    : () => argon2.hash(password, { ...parameters, secret })

let made = 0
let ended = false
process.on('SIGTERM', () => {
  ended = true
})
setPriority(Number(niceness))

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

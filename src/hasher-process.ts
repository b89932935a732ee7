import { writeFileSync } from 'node:fs'
import { setPriority } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { type Answer, compute, type Job } from './hasher.ts'

/*
 * Hashes what the process that started it sends, at a lower priority than everything else. It ends with that process, which
 * closes the channel by whatever way it ends.
 */

/**
 * Of 0 to 19: a tenth of the time where a core is wanted by others too. 19 would be a seventieth, and on a machine that is
 * full nobody could sign in.
 */
const niceness = 10

const tell = (answer: Answer) => void process.send?.(answer, () => {})

/**
 * Linux may share its cores by sessions first (autogroups), where niceness only counts inside of one; each connection of
 * PostgreSQL is a session. So this process has one of its own, whose niceness is set as well. Containers share by cgroups
 * instead, and what can't be set here does not matter there.
 */
async function yieldToOtherSessions(): Promise<void> {
  for (;;) {
    try {
      return writeFileSync('/proc/self/autogroup', String(niceness))
    } catch (err) {
      // Linux takes one such change in 100 ms from all users
      if ((err as NodeJS.ErrnoException).code !== 'EAGAIN') return
      await sleep(100)
    }
  }
}

// the threads that hash begin later, and inherit it
setPriority(niceness)
void yieldToOtherSessions()

process.on('disconnect', () => process.exit())
// meant for the process that it works for, which may have sign-ins to finish
process.on('SIGTERM', () => {})
process.on('SIGINT', () => {})
process.on('message', async ({ id, job }: { id: number; job: Job }) => {
  try {
    tell({ id, result: await compute(job) })
  } catch (err) {
    tell({ id, error: (err as Error).message })
  }
})
tell('ready')

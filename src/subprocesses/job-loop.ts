import { writeFileSync } from 'node:fs'
import { setPriority } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Answer } from './subprocess.ts'

/**
 * Linux may share its cores by sessions first (autogroups), where niceness only counts inside of one; each connection of
 * PostgreSQL is a session. So a helper process has one of its own, whose niceness is set as well. Containers share by cgroups
 * instead, and what can't be set here does not matter there.
 */
async function yieldToOtherSessions(niceness: number): Promise<void> {
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

/**
 * The loop of a helper process: does what the process that started it sends, at a lower priority than everything else. It ends
 * with that process, which closes the channel by whatever way it ends.
 */
export function serveJobs<Job, Result>(compute: (job: Job) => Promise<Result>, niceness: number): void {
  const tell = (answer: Answer<Result>) => void process.send?.(answer, () => {})
  if (niceness > 0) {
    // the threads that work begin later, and inherit it
    setPriority(niceness)
    void yieldToOtherSessions(niceness)
  }
  process.on('disconnect', () => process.exit())
  // meant for the process that it works for, which may have requests to finish
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
}

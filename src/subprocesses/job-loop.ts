import { writeFileSync } from 'node:fs'
import { setPriority } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Answer } from './subprocess.ts'

/**
 * Sets the niceness of this process's autogroup. Linux may schedule by sessions first (autogroups), and niceness counts
 * only inside of a session; each connection of PostgreSQL is a session. So a subprocess is the leader of a session of
 * its own, which needs the niceness too. Containers are scheduled by cgroups instead, so a failure here does no harm
 * there.
 */
async function setSessionNiceness(niceness: number): Promise<void> {
  for (;;) {
    try {
      return writeFileSync('/proc/self/autogroup', String(niceness))
    } catch (err) {
      // EAGAIN: Linux accepts one such change in 100 ms, from all users together
      if ((err as NodeJS.ErrnoException).code !== 'EAGAIN') return
      await sleep(100)
    }
  }
}

/**
 * The main loop of a subprocess: receives jobs from its parent, computes them and sends the results back, with the
 * given niceness. The subprocess exits when its parent ends, because the IPC channel closes then in any case.
 */
export function serveJobs<Job, Result>(compute: (job: Job) => Promise<Result>, niceness: number): void {
  const send = (answer: Answer<Result>) => void process.send?.(answer, () => {})
  if (niceness > 0) {
    // worker threads start later and inherit the priority
    setPriority(niceness)
    void setSessionNiceness(niceness)
  }
  process.on('disconnect', () => process.exit())
  // signals are meant for the parent, which may have requests to finish with the help of this process
  process.on('SIGTERM', () => {})
  process.on('SIGINT', () => {})
  process.on('SIGUSR2', () => {})
  process.on('message', async ({ id, job }: { id: number; job: Job }) => {
    try {
      send({ id, result: await compute(job) })
    } catch (err) {
      send({ id, error: (err as Error).message })
    }
  })
  send('ready')
}

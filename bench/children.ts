import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'

/*
 * Stops the child processes and removes the temporary files of a run when the run ends: normally, by an error, or by
 * SIGINT or SIGTERM.
 */

const children = new Set<ChildProcess>()

/** The temporary folder of a run, for logs, scripts and profiles. */
export const scratch = mkdtempSync(join(tmpdir(), 'aggios-bench-'))

/** Registers a child process, which is stopped at the end of the run. */
export function adopt<Child extends ChildProcess>(child: Child): Child {
  children.add(child)
  child.once('exit', () => children.delete(child))
  return child
}

/** Ends what a scenario that failed has left, so that it does not disturb the next one. */
export function stopChildren(): void {
  for (const child of children) child.kill('SIGTERM')
}

process.once('exit', () => {
  stopChildren()
  rmSync(scratch, { recursive: true, force: true })
})
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => process.exit(128 + constants.signals[signal]))
}

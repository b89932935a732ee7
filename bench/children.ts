import type { ChildProcess } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'

/*
 * What a run starts and writes in between ends with it, however it ends: when it is done, by an error, by SIGINT or SIGTERM.
 */

const children = new Set<ChildProcess>()

/** For logs, scripts and profiles; gone with the run. */
export const scratch = mkdtempSync(join(tmpdir(), 'aggios-bench-'))

export function adopt<Child extends ChildProcess>(child: Child): Child {
  children.add(child)
  child.once('exit', () => children.delete(child))
  return child
}

process.once('exit', () => {
  for (const child of children) child.kill('SIGTERM')
  rmSync(scratch, { recursive: true, force: true })
})
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => process.exit(128 + constants.signals[signal]))
}

import { execFile } from 'node:child_process'
import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve as resolvePath } from 'node:path'
import { type Owner, root, temporaryFolder } from './harness.ts'

/*
 * Programs of the system, such as docker, played by scripts that keep what runs in a folder and write down what they were asked.
 */

/** A folder with programs that take the place of those of the system. */
export function createStage(t: Owner, programs: Record<string, string>) {
  const folder = temporaryFolder(t)
  mkdirSync(join(folder, 'bin'))
  mkdirSync(join(folder, 'running'))
  for (const [name, text] of Object.entries({ ...programs, sleep: 'exit 0' })) {
    writeFileSync(join(folder, 'bin', name), `#!/bin/sh\ncd "${folder}"\n${text}\n`)
    chmodSync(join(folder, 'bin', name), 0o755)
  }
  writeFileSync(join(folder, 'calls'), '')
  return {
    folder,
    /** What runs: the version of each process, by its name. */
    running: () =>
      Object.fromEntries(
        readdirSync(join(folder, 'running')).map((name) => [name, readFileSync(join(folder, 'running', name), 'utf8')])
      ),
    put: (name: string, version: string) => writeFileSync(join(folder, 'running', name), version),
    calls: () => readFileSync(join(folder, 'calls'), 'utf8').trim().split('\n'),
    run: (script: string, args: string[], env: Record<string, string>) =>
      new Promise<{ code: number; output: string }>((resolve) => {
        const environment = {
          ...env,
          PATH: `${join(folder, 'bin')}:${process.env.PATH}`
        } as unknown as NodeJS.ProcessEnv
        execFile(resolvePath(root, script), args, { env: environment }, (err, stdout, stderr) =>
          resolve({ code: err ? Number(err.code) : 0, output: stdout + stderr })
        )
      })
  }
}

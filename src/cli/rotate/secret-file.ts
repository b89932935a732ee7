import {
  closeSync,
  existsSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync
} from 'node:fs'
import type { Environment } from '../../config/environment.ts'
import { Refusal } from '../operator.ts'

/** How far a rotation has come. It has no secret: `key` is the public id of the new key of a ring, `from` the name of a login. */
export type Progress = { step: 'appended' | 'switched'; at: string; from?: string; key?: string }

export type SecretFile = ReturnType<typeof openSecretFile>

/** The file of a secret, as NAME_FILE names it. Throws Refusal when the secret comes from nowhere else than the environment. */
export function openSecretFile(env: Environment, name: string) {
  const path = env[`${name}_FILE`]
  if (!path)
    throw new Refusal(
      `${name}_FILE: must name the file that the servers read, because a running server reads only files again`
    )
  const notes = `${path}.rotation`
  const freshNotes = `${notes}.new`

  return {
    name,
    path,
    read(): string {
      try {
        return readFileSync(path, 'utf8').trim()
      } catch (err) {
        throw new Refusal(`${path} can't be read (${(err as NodeJS.ErrnoException).code})`)
      }
    },
    /**
     * Replaces the content in its place: a container that has this file mounted would go on to see the old one after a rename.
     * One write covers the old content, so a reader finds one of the two, and never a part of both.
     */
    write(text: string): void {
      const content = Buffer.from(`${text}\n`)
      const before = existsSync(path) ? readFileSync(path).length : 0
      const padded = Buffer.concat([content, Buffer.alloc(Math.max(0, before - content.length), '\n')])
      refusing(path, () => {
        const file = openSync(path, before === 0 ? 'w' : 'r+', 0o600)
        try {
          writeSync(file, padded, 0, padded.length, 0)
          ftruncateSync(file, content.length)
          fsyncSync(file)
        } finally {
          closeSync(file)
        }
      })
    },
    /**
     * Throws Refusal when the file, or the notes beside it, can't be written. Every rotation calls it before it changes
     * anything, because it could neither go on nor remember where it stopped.
     */
    requireWritable(): void {
      refusing(path, () => existsSync(path) && closeSync(openSync(path, 'r+')))
      refusing(notes, () => {
        writeFileSync(freshNotes, '')
        rmSync(freshNotes)
      })
    },
    /** How far a rotation of this secret has come. Undefined when none is under way. */
    progress: (): Progress | undefined => (existsSync(notes) ? JSON.parse(readFileSync(notes, 'utf8')) : undefined),
    /**
     * Remembers the step beside the file, so that a rotation that was interrupted goes on. The notes are replaced by a rename,
     * so that they are never half written.
     */
    remember(step: Omit<Progress, 'at'>): Progress {
      const progress = { ...step, at: new Date().toISOString() }
      refusing(notes, () => {
        writeFileSync(freshNotes, `${JSON.stringify(progress)}\n`, { flush: true })
        renameSync(freshNotes, notes)
      })
      return progress
    },
    forget: (): void => refusing(notes, () => rmSync(notes, { force: true }))
  }
}

/** Names the file that the system does not let this command write. */
function refusing(path: string, write: () => unknown): void {
  try {
    write()
  } catch (err) {
    throw new Refusal(`${path} can't be written (${(err as NodeJS.ErrnoException).code})`)
  }
}

import { randomBytes } from 'node:crypto'
import { existsSync, linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { InvalidConfiguration } from './invalid-configuration.ts'

/**
 * Reads a secret from a file under DATA_DIR that only its owner can read, and makes the secret on first use.
 *
 * The secret is written to a temporary file and linked into its place, so the file is either complete or absent. Of two
 * processes that start at the same time, one makes the secret and the other reads it.
 *
 * Throws InvalidConfiguration when the folder can't be used or the file holds no secret.
 */
export function developmentSecret(dataDir: string, name: string): string {
  const folder = join(dataDir, 'secrets')
  const file = join(folder, name)
  const value = readOrCreate(dataDir, folder, file)
  if (value.length < 32) {
    throw new InvalidConfiguration([`DATA_DIR: ${file} holds no secret: remove it, and a new one is made`])
  }
  return value
}

function readOrCreate(dataDir: string, folder: string, file: string): string {
  try {
    if (!existsSync(file)) {
      mkdirSync(folder, { recursive: true, mode: 0o700 })
      const temporary = `${file}.${process.pid}.${randomBytes(4).toString('hex')}`
      writeFileSync(temporary, randomBytes(32).toString('base64url'), { mode: 0o600, flag: 'wx', flush: true })
      try {
        linkSync(temporary, file)
      } catch (err) {
        if ((err as NodeJS.ErrnoException).code !== 'EEXIST') throw err
      } finally {
        rmSync(temporary)
      }
    }
    return readFileSync(file, 'utf8')
  } catch (err) {
    throw explainFolderError(dataDir, err)
  }
}

/**
 * Turns an error of a system call into an InvalidConfiguration that says what to do. Returns any other error unchanged.
 */
export function explainFolderError(dataDir: string, err: unknown): unknown {
  const { code, syscall } = err as NodeJS.ErrnoException
  if (syscall === undefined) return err
  const remedy = code === 'ENOSPC' || code === 'EDQUOT' ? 'make room there' : 'let this user write there'
  return new InvalidConfiguration([`DATA_DIR: ${dataDir} can't be used (${code}): ${remedy}, or set another DATA_DIR`])
}

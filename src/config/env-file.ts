import { readFileSync } from 'node:fs'
import type { Environment } from './environment.ts'
import { InvalidConfiguration } from './invalid-configuration.ts'

/** A line that Node reads as nothing, or as a name and its value, which may go on over lines when it is quoted. */
const line =
  /[ \t]*(?:(?:export[ \t]+)?[A-Za-z_]\w*[ \t]*=[ \t]*(?:"[^"]*"|'[^']*'|`[^`]*`|[^\s"'`#][^\n]*)?[ \t]*)?(?:#[^\n]*)?(?:\n|$)/y

/**
 * The environment of the process with what the file `.env` of the working directory adds: what is set already wins, also when it
 * is empty. Without such a file it is the environment as it was.
 *
 * Throws InvalidConfiguration for a file that can't be read, is empty, or has a line that Node would skip in silence: a server
 * that starts without its settings would be another server. The message repeats nothing of the file, which holds secrets.
 */
export function readEnvironment(): Environment {
  const text = readText()
  if (text !== undefined) {
    refuseBroken(text)
    process.loadEnvFile()
  }
  return process.env
}

function readText(): string | undefined {
  try {
    return readFileSync('.env', 'utf8').replaceAll('\r', '')
  } catch (err) {
    const { code } = err as NodeJS.ErrnoException
    if (code === 'ENOENT') return undefined
    throw new InvalidConfiguration([
      `.env: can't be read (${code}): make it a file that this user may read, or remove it`
    ])
  }
}

function refuseBroken(text: string): void {
  if (text.trim() === '') throw new InvalidConfiguration(['.env: is empty: copy .env.example to it, or remove it'])
  for (line.lastIndex = 0; line.lastIndex < text.length; ) {
    const start = line.lastIndex
    if (line.test(text)) continue
    const number = text.slice(0, start).split('\n').length
    throw new InvalidConfiguration([
      `.env: line ${number} is not NAME=value: write it as in .env.example, or remove it`
    ])
  }
}

import { readFileSync } from 'node:fs'
import type { Environment } from './environment.ts'
import { InvalidConfiguration } from './invalid-configuration.ts'

/**
 * Matches what Node accepts in a `.env` file: an empty line, a comment, or NAME=value. A quoted value may span several
 * lines.
 */
const line =
  /[ \t]*(?:(?:export[ \t]+)?[A-Za-z_]\w*[ \t]*=[ \t]*(?:"[^"]*"|'[^']*'|`[^`]*`|[^\s"'`#][^\n]*)?[ \t]*)?(?:#[^\n]*)?(?:\n|$)/y

/**
 * Returns the environment of the process, completed from the file `.env` of the working directory where there is one. A
 * variable that is set already wins over the file, also when it is empty.
 *
 * Throws InvalidConfiguration for a file that can't be read, is empty, or has a line that Node would skip in silence,
 * because a server must not start without some of its settings. The message quotes nothing of the file, which holds
 * secrets.
 */
export function readEnvironment(): Environment {
  const text = readText()
  if (text !== undefined) {
    requireWellFormed(text)
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

function requireWellFormed(text: string): void {
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

import { readFileSync } from 'node:fs'
import type { Setting } from './settings.ts'
import { InvalidValue } from './value-readers.ts'

export type Environment = Record<string, string | undefined>

/**
 * Reads the given settings from the environment. An empty variable counts as absent, and a secret may stand in the file
 * that `NAME_FILE` names.
 *
 * A setting that can't be read is undefined in `values`, and `problems` says why.
 */
export function readSettings<Chosen extends Record<string, Setting<unknown>>>(env: Environment, chosen: Chosen) {
  const problems: string[] = []
  const values: Record<string, unknown> = {}
  for (const [key, setting] of Object.entries<Setting<unknown>>(chosen)) {
    try {
      const given = readText(env, setting)
      values[key] = given === undefined ? undefined : setting.read(given)
    } catch (err) {
      if (!(err instanceof InvalidValue)) throw err
      problems.push(`${setting.name}: ${err.message}`)
    }
  }
  return { values: values as { [K in keyof Chosen]: Chosen[K] extends Setting<infer T> ? T : never }, problems }
}

/** The text of a setting: from the variable, from the file of a secret, or the default. */
function readText(env: Environment, { name, secret, fallback }: Setting<unknown>): string | undefined {
  const given = env[name] || undefined
  const file = secret ? env[`${name}_FILE`] || undefined : undefined
  if (file === undefined) return given ?? fallback
  if (given !== undefined) throw new InvalidValue(`is set both directly and by ${name}_FILE`)
  try {
    return readFileSync(file, 'utf8').trim() || undefined
  } catch {
    throw new InvalidValue(`${name}_FILE names a file that can't be read: ${file}`)
  }
}

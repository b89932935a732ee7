import { readFile } from 'node:fs/promises'
import { type Config, readConfig } from '../config/config.ts'
import type { Environment } from '../config/environment.ts'
import { InvalidConfiguration } from '../config/invalid-configuration.ts'
import { type Setting, settings } from '../config/settings.ts'
import { createPoller } from '../poller.ts'
import { liveSettings, nameOf, type SecretValues } from './live-secrets.ts'

const intervalMs = 1000

type Log = { info(facts: object, text: string): void; error(facts: object, text: string): void }

export type SecretFiles = ReturnType<typeof watchSecretFiles>

/** The files of secrets that the environment names, by the name of their setting. */
export function secretFilesOf(env: Environment): Map<string, string> {
  const named = Object.values<Setting<unknown>>(settings).flatMap(({ name, secret }): [string, string][] => {
    const file = secret ? env[`${name}_FILE`] : undefined
    return file ? [[name, file]] : []
  })
  return new Map(named)
}

/**
 * Reads the files of secrets again and again, and hands over the new values when they have changed. It polls, because links
 * that Kubernetes swaps, renames of agents, and mounts of containers do not all cause events.
 *
 * A change counts when two readings in a row are the same, so that a file that is just being written is not taken. Then all
 * settings are read and checked as at the start. When anything is wrong, or a file is empty or gone, nothing changes; that is
 * logged once and counted.
 */
export function watchSecretFiles(
  env: Environment,
  running: Config,
  log: Log,
  onChange: (values: SecretValues) => void
) {
  const files = secretFilesOf(env)
  const live = new Set<string>(liveSettings.map(nameOf))
  /** A file that was empty at the start belongs to a setting that is not used. */
  const inUse = new Set<string>(liveSettings.filter((key) => running[key] !== undefined).map(nameOf))
  let taken: string | undefined
  let before: string | undefined
  let problems: string[] = []
  let refused = 0

  async function read(): Promise<Map<string, string>> {
    const texts = await Promise.all(
      [...files].map(async ([name, file]): Promise<[string, string]> => {
        return [name, (await readFile(file, 'utf8').catch(() => '')).trim()]
      })
    )
    return new Map(texts)
  }

  /** The values of the files, and of the environment where a secret has no file. Throws InvalidConfiguration. */
  function validate(texts: Map<string, string>): SecretValues {
    const empty = [...texts].flatMap(([name, text]) =>
      text === '' && inUse.has(name) ? [`${name}_FILE: is empty or can't be read`] : []
    )
    if (empty.length > 0) throw new InvalidConfiguration(empty)
    const given = Object.fromEntries(texts)
    const withoutFiles = Object.fromEntries([...files.keys()].map((name) => [`${name}_FILE`, undefined]))
    const next = readConfig({ ...env, ...withoutFiles, ...given })
    const values = Object.fromEntries(
      liveSettings.map((key) => [key, files.has(nameOf(key)) ? next[key] : running[key]])
    )
    // without one of its own, the pepper is derived from the token secret
    return { ...(values as SecretValues), passwordPepper: next.passwordPepper }
  }

  async function look({ stable }: { stable: boolean }): Promise<void> {
    const texts = await read()
    const text = JSON.stringify([...texts])
    const settled = !stable || text === before
    before = text
    if (text === taken || !settled) return
    const last = new Map<string, string>(JSON.parse(taken ?? text))
    taken = text
    try {
      const values = validate(texts)
      problems = []
      const late = [...texts].flatMap(([name, value]) => (!live.has(name) && value !== last.get(name) ? [name] : []))
      if (late.length > 0) log.info({ settings: late }, 'a secret has changed that takes effect with the next start')
      onChange(values)
    } catch (err) {
      if (!(err instanceof InvalidConfiguration)) throw err
      refused++
      problems = err.problems
      log.error({ problems }, 'files of secrets can not be used; the values before stay in force')
    }
  }

  const warn = (err: unknown) => log.error({ err }, 'files of secrets could not be read again')
  const poller = createPoller({
    intervalMs,
    work: () => look({ stable: true }),
    onError: warn
  })

  return {
    /** Begins to poll. Does nothing when no secret comes from a file. */
    async start(): Promise<void> {
      if (files.size === 0) return
      await poller.run()
      poller.start()
    },
    /** Reads the files now. What is in them counts at once. Never rejects. */
    reload: () => look({ stable: false }).catch(warn),
    /** `problems`: what is wrong with the files as they are. */
    stats: () => ({ files: files.size, refused, problems })
  }
}

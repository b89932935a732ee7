import type { Config } from '../config/config.ts'
import { settings } from '../config/settings.ts'
import { fingerprint, newFingerprintSalt } from './fingerprints.ts'

/** The secrets that a running process takes over from their files. All others are read at the start only. */
export const liveSettings = [
  'jwtSecret',
  'passwordPepper',
  'databaseUrl',
  'databaseReplicaUrl',
  'redisUrl',
  's3AccessKey',
  's3SecretKey',
  'smtpUrl',
  'googleClientSecret',
  'githubClientSecret'
] as const
export type LiveSetting = (typeof liveSettings)[number]
export type SecretValues = Pick<Config, LiveSetting>
export type RingSetting = 'jwtSecret' | 'passwordPepper'

/** The settings that only make sense together. Each group is taken over by itself. */
const groups: readonly (readonly LiveSetting[])[] = [
  ['s3AccessKey', 's3SecretKey'],
  ...liveSettings.filter((key) => key !== 's3AccessKey' && key !== 's3SecretKey').map((key) => [key])
]

/** Puts a prepared value in force. It can't fail and waits for nothing. */
type Commit = () => void
/** Makes sure that the new values can be used, or rejects. Nothing changes before its result is called. */
type Prepare = (values: SecretValues) => Commit | Promise<Commit>

/** What a process says about its secrets: fingerprints of those in force, with their salt, and the settings whose new value it refused. */
export type SecretsReport = { salt: string; in_force: Record<string, string[]>; refused: string[] }

type Log = { info(facts: object, text: string): void; error(facts: object, text: string): void }

const retryMs = 2000

export const nameOf = (key: LiveSetting) => settings[key].name
const listOf = (value: string | string[] | undefined) => (value === undefined ? [] : [value].flat())
const isSame = (a: string | string[] | undefined, b: string | string[] | undefined) =>
  JSON.stringify(listOf(a)) === JSON.stringify(listOf(b))

export type LiveSecrets = ReturnType<typeof createLiveSecrets>

/**
 * The secrets of a process that can change while it runs. Whoever uses one says with `follow` how a new value is checked
 * and put in force.
 *
 * A new value is in force for all of its users at once, or for none. One that a user refuses (a password that the database
 * does not know, say) changes nothing, is logged once, and is tried again until it works or is replaced.
 *
 * `config` is changed too, so that it always has the values in force.
 */
export function createLiveSecrets(config: Config, log: Log) {
  const listeners: ((values: Partial<SecretValues>) => void)[] = []
  const followers: { keys: readonly LiveSetting[]; prepare: Prepare }[] = []
  const refused = new Map<string, string>()
  const counts = { adopted: 0, refused: 0 }
  const salt = newFingerprintSalt()
  let wanted: SecretValues = config
  let running: Promise<void> = Promise.resolve()
  let retry: NodeJS.Timeout | undefined
  let closed = false

  function follow(keys: readonly LiveSetting[], prepare: Prepare): void {
    followers.push({ keys, prepare })
  }

  async function adopt(group: readonly LiveSetting[]): Promise<void> {
    const name = group.map(nameOf).join(', ')
    const changed = group.filter((key) => !isSame(config[key], wanted[key]))
    if (changed.length === 0) {
      refused.delete(name)
      return
    }
    const values = { ...config, ...pick(wanted, group) }
    const text = JSON.stringify(pick(values, group))
    try {
      const missing = changed.filter((key) => config[key] === undefined || values[key] === undefined)
      if (missing.length > 0) throw new Error('it can not appear or disappear while the process runs: start anew')
      const concerned = followers.filter(({ keys }) => keys.some((key) => group.includes(key)))
      const commits = await Promise.all(concerned.map(({ prepare }) => prepare(values)))
      for (const commit of commits) commit()
      Object.assign(config, pick(values, group))
      for (const tell of listeners) tell(pick(values, group))
      counts.adopted++
      refused.delete(name)
      log.info({ settings: changed.map(nameOf) }, 'a secret has changed, and the new one is used')
    } catch (err) {
      if (refused.get(name) !== text) {
        counts.refused++
        log.error({ err, settings: changed.map(nameOf) }, 'a new secret can not be used; the one before stays in force')
      }
      refused.set(name, text)
    }
  }

  async function adoptAll(): Promise<void> {
    for (const group of groups) await adopt(group)
    clearTimeout(retry)
    if (refused.size > 0 && !closed) retry = setTimeout(() => void renew(wanted), retryMs).unref()
  }

  /** Takes over new values. Resolves when that was tried, and never rejects. */
  function renew(values: SecretValues): Promise<void> {
    wanted = pick(values, liveSettings)
    running = running.then(adoptAll)
    return running
  }

  return {
    follow,
    /** Makes an object of the keys of a ring, and makes it anew when they change. Whoever holds the result uses the new one. */
    following<T extends object>(key: RingSetting, make: (secrets: readonly string[]) => T): T {
      let current = make(config[key])
      follow([key], (values) => {
        const next = make(values[key])
        return () => {
          current = next
        }
      })
      return new Proxy(current, { get: (_, name) => Reflect.get(current, name) })
    },
    renew,
    /** Calls the listener with each new value that is in force. */
    onAdopted: (listener: (values: Partial<SecretValues>) => void) => void listeners.push(listener),
    async report(): Promise<SecretsReport> {
      const set = liveSettings.filter((key) => config[key] !== undefined)
      const prints = await Promise.all(
        set.map(async (key) => {
          const name = nameOf(key)
          return [name, await Promise.all(listOf(config[key]).map((value) => fingerprint(salt, name, value)))] as const
        })
      )
      return { salt, in_force: Object.fromEntries(prints), refused: [...refused.keys()] }
    },
    stats: () => ({ ...counts, waiting: refused.size }),
    close(): void {
      closed = true
      clearTimeout(retry)
    }
  }
}

function pick<K extends LiveSetting>(values: SecretValues, keys: readonly K[]): Pick<SecretValues, K> {
  return Object.fromEntries(keys.map((key) => [key, values[key]])) as Pick<SecretValues, K>
}

import type { Config } from '../config/config.ts'

export type Level = Config['logLevel']
/** What a process logs now, what its settings say, and when it falls back to them. */
export type LogLevelReport = { level: Level; configured: Level; until: string | null }
export type LogLevel = ReturnType<typeof createLogLevel>

/** The levels, the quietest first. */
export const levels = ['silent', 'fatal', 'error', 'warn', 'info', 'debug', 'trace'] as const satisfies Level[]
export const defaultSeconds = 900
export const maxSeconds = 86_400

type Log = { level: string; warn(members: object, text: string): void }

/**
 * The level of the log, which an operator changes for a while. Each change is a line of the log itself, whatever the level.
 * `apply` sets the level in the processes that serve.
 */
export function createLogLevel(log: Log, configured: Level, apply: (level: Level) => void) {
  let level = configured
  let until: string | null = null
  let timer: NodeJS.Timeout | undefined

  function change(next: Level, end: string | null, by: string): void {
    const facts = { log_level: { from: level, to: next, until: end, by } }
    level = next
    until = end
    log.level = 'info'
    log.warn(facts, 'the level of the log was changed')
    log.level = next
    apply(next)
  }

  function set(next: Level, seconds: number, by: string): LogLevelReport {
    clearTimeout(timer)
    const ends = next === configured ? null : new Date(Date.now() + seconds * 1000).toISOString()
    change(next, ends, by)
    if (ends !== null) timer = setTimeout(() => change(configured, null, 'the time limit'), seconds * 1000).unref()
    return report()
  }

  const report = (): LogLevelReport => ({ level, configured, until })

  return {
    report,
    /** Changes the level for so many seconds. The configured level ends an earlier change. */
    set,
    /** For a signal, which carries no level: logs one level more for a while, or ends an earlier change. */
    toggle(by: string): void {
      const more = levels.indexOf(configured) < levels.indexOf('debug') ? 'debug' : 'trace'
      set(level === configured ? more : configured, defaultSeconds, by)
    }
  }
}

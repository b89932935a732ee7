import { isIPv6 } from 'node:net'
import { Argument, InvalidArgumentError } from 'commander'
import { defaultSeconds, type LogLevelReport, levels, maxSeconds } from '../observability/log-level.ts'
import { createOperatorCommand } from './command.ts'
import { end, finish, readSettings } from './operator.ts'

export const command = createOperatorCommand(
  'log-level',
  'Shows or changes how much a running server logs, in all its processes. It asks the internal listener, so METRICS_PORT must be set.'
)
  .addArgument(new Argument('[level]', 'the level from now on; without it, the one there is').choices(levels))
  .option(
    '--for <seconds>',
    `how long, until it falls back to LOG_LEVEL; at most ${maxSeconds}`,
    seconds,
    defaultSeconds
  )
  .action(changeLevel)

function seconds(given: string): number {
  const number = Number(given)
  if (!Number.isInteger(number) || number < 1 || number > maxSeconds) {
    throw new InvalidArgumentError(`must be a number of seconds, from 1 to ${maxSeconds}`)
  }
  return number
}

async function changeLevel(level: string | undefined, { for: seconds }: { for: number }): Promise<never> {
  const { metricsHost, metricsPort } = readSettings()
  if (metricsPort === 0) return end(69, 'METRICS_PORT is 0, so no listener takes this: send SIGUSR2 to the server')
  const url = `http://${reachable(metricsHost)}:${metricsPort}/log-level`
  const change = {
    method: 'PUT',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ level, for: seconds })
  }
  const signal = AbortSignal.timeout(10_000)
  const reply = await fetch(url, { ...(level !== undefined && change), signal }).catch(() => undefined)
  if (!reply) return end(69, `no server answers at ${url}`)
  if (!reply.ok) return end(1, `the server answers ${reply.status} at ${url}`)
  const report = (await reply.json()) as LogLevelReport
  const until = report.until === null ? '' : ` until ${report.until}, then ${report.configured}`
  return finish(0, { text: `${report.level}${until}`, data: report })
}

/** The address at which a listener can be reached from this machine. */
function reachable(host: string): string {
  if (host === '0.0.0.0') return '127.0.0.1'
  if (host === '::') return '[::1]'
  return isIPv6(host) ? `[${host}]` : host
}

// last, because the actions use what is defined above
if (import.meta.main) await command.parseAsync()

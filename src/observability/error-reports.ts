import { randomUUID } from 'node:crypto'
import { hostname } from 'node:os'
import { join } from 'node:path'
import type { Config } from '../config/config.ts'
import { type LoggedError, serializeError } from '../error-log.ts'
import { build } from './build.ts'

/** What is known about a request that failed: ids, never a body, a path or an address. */
export type Circumstances = {
  route?: string
  request_id?: string
  tenant_id?: string | undefined
  user_id?: string | undefined
  trace?: { traceId: string; spanId: string } | undefined
}

export type ErrorReports = ReturnType<typeof createErrorReports>

/** The same fault may meet every request: no more events than this in a minute, for each process. */
const maxPerMinute = 30
const timeoutMs = 5000
const shutdownTimeoutMs = 1000
const root = `${join(import.meta.dirname, '..', '..')}/`

/**
 * Sends errors to Sentry, as events of its envelope protocol: Sentry takes traces by OTLP, but drops the errors in them.
 * Nothing waits for it. What it does not take is lost and counted.
 */
export function createErrorReports({ envelopes, auth }: NonNullable<Config['sentryDsn']>, environment: string) {
  const counts = { sent: 0, lost: 0 }
  const pending = new Set<Promise<void>>()
  let windowStartedAt = Number.NEGATIVE_INFINITY
  let inWindow = 0
  let quietUntil = 0

  /** Whether one more event may be sent now. */
  function admit(): boolean {
    const now = performance.now()
    if (now - windowStartedAt > 60_000) [windowStartedAt, inWindow] = [now, 0]
    return now >= quietUntil && ++inWindow <= maxPerMinute
  }

  async function send(event: object & { event_id: string }): Promise<void> {
    const { event_id } = event
    const lines = [{ event_id, sent_at: new Date().toISOString() }, { type: 'event' }, event]
    const reply = await fetch(envelopes, {
      method: 'POST',
      headers: { 'content-type': 'application/x-sentry-envelope', 'x-sentry-auth': auth },
      body: `${lines.map((line) => JSON.stringify(line)).join('\n')}\n`,
      redirect: 'error',
      signal: AbortSignal.timeout(timeoutMs)
    })
    await reply.body?.cancel()
    if (reply.status === 429) {
      const seconds = Number(reply.headers.get('retry-after'))
      quietUntil = performance.now() + 1000 * (seconds > 0 ? Math.min(seconds, 3600) : 60)
    }
    if (!reply.ok) throw new Error(`status ${reply.status}`)
  }

  return {
    /** Sends an error, with its causes. Returns at once. */
    report(err: unknown, level: 'error' | 'fatal', about: Circumstances = {}): void {
      if (!admit()) return void counts.lost++
      const sending = send(eventOf(err, level, environment, about)).then(
        () => void counts.sent++,
        () => void counts.lost++
      )
      pending.add(sending)
      void sending.then(() => pending.delete(sending))
    },
    counts: () => ({ ...counts }),
    /** Waits for what is being sent, for a second at most. */
    async stop(): Promise<void> {
      let timer: NodeJS.Timeout | undefined
      const late = new Promise<void>((resolve) => {
        timer = setTimeout(resolve, shutdownTimeoutMs)
      })
      await Promise.race([Promise.all(pending), late])
      clearTimeout(timer)
    }
  }
}

function eventOf(err: unknown, level: string, environment: string, about: Circumstances) {
  const { route, request_id, tenant_id, user_id, trace } = about
  return {
    event_id: randomUUID().replaceAll('-', ''),
    timestamp: Date.now() / 1000,
    ...{ level, platform: 'node', environment, server_name: hostname() },
    release: `aggios-api@${build.version}+${build.revision}`,
    ...(route !== undefined && { transaction: route }),
    ...(user_id !== undefined && { user: { id: user_id } }),
    tags: { ...(request_id !== undefined && { request_id }), ...(tenant_id !== undefined && { tenant_id }) },
    contexts: {
      runtime: { name: 'node', version: process.version },
      ...(trace && { trace: { trace_id: trace.traceId, span_id: trace.spanId } })
    },
    // the oldest cause first
    exception: { values: causesOf(serializeError(err)).reverse() }
  }
}

function causesOf({ type, message, stack, cause }: LoggedError): object[] {
  const own = { type, value: message, stacktrace: { frames: framesOf(stack) } }
  return [own, ...(cause ? causesOf(cause as LoggedError) : [])]
}

const frame = /^ {4}at (?:(.*) \()?(?:file:\/\/)?(.+?):(\d+):(\d+)\)?$/

/** The places of a stack, the outermost first. Those of packages and of Node are not the product's own. */
function framesOf(stack: string): object[] {
  return stack
    .split('\n')
    .flatMap((line) => {
      const [, name, file = '', row, column] = frame.exec(line) ?? []
      if (row === undefined) return []
      const filename = file.replace(root, '')
      const in_app = !/^node:|node_modules/.test(filename)
      return { function: name ?? '?', filename, lineno: Number(row), colno: Number(column), in_app }
    })
    .reverse()
}

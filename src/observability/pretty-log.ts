/** Which member names which level in a line of the log. */
const levels: Record<number, [label: string, color: number]> = {
  10: ['TRACE', 90],
  20: ['DEBUG', 34],
  30: ['INFO', 32],
  40: ['WARN', 33],
  50: ['ERROR', 31],
  60: ['FATAL', 41]
}

type Line = Record<string, unknown> & { level: number; time: number; msg?: string }

/** Writes the lines of the log for people: one line each, and below it the stack of an error or the text of a mail. */
export function prettyStream(out: { write(text: string): unknown; isTTY?: boolean }): { write(line: string): void } {
  const paint = (color: number, text: string) => (out.isTTY ? `\u001b[${color}m${text}\u001b[0m` : text)
  return { write: (line) => void out.write(prettyLine(JSON.parse(line) as Line, paint)) }
}

function prettyLine(
  { level, time, msg = '', pid: _, hostname: __, err, mail, ...members }: Line,
  paint: (color: number, text: string) => string
): string {
  const [label, color] = levels[level] ?? [String(level), 0]
  const facts = Object.entries(members).map(([name, value]) => `${paint(90, `${name}=`)}${shown(value)}`)
  const head = `[${clock(time)}] ${paint(color, label)}: ${[shownText(msg), ...facts].join(' ')}\n`
  return head + below(err ? describeError(err as ShownError) : '') + below(mail ? describeMail(mail as ShownMail) : '')
}

type ShownError = { type: string; message: string; stack: string; cause?: ShownError }
type ShownMail = { to: string; subject: string; text: string }

function describeError({ type, message, stack, cause }: ShownError): string {
  return [stack || `${type}: ${message}`, ...(cause ? [`caused by: ${describeError(cause)}`] : [])].join('\n')
}

const describeMail = ({ to, subject, text }: ShownMail) => `To: ${to}\nSubject: ${subject}\n\n${text.trimEnd()}\n`

const below = (text: string) =>
  text === ''
    ? ''
    : `${text
        .split('\n')
        .map((line) => `    ${shownText(line)}`)
        .join('\n')}\n`

/** The time of day of this machine. */
function clock(time: number): string {
  const date = new Date(time)
  return new Date(time - date.getTimezoneOffset() * 60_000).toISOString().slice(11, 23)
}

const shown = (value: unknown) =>
  typeof value === 'string' && /^[\w./:@+-]+$/.test(value) ? value : shownText(JSON.stringify(value) ?? '')

/** A text that a client may have chosen, without characters that a terminal would act on. */
const shownText = (text: string) => text.replaceAll(/\p{Cc}/gu, '?')

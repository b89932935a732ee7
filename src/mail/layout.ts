export const locales = ['en', 'pt-BR'] as const
export type Locale = (typeof locales)[number]

/** A mail, ready to be sent. Texts by users are made safe for mail programs, and escaped in `html`. */
export type Mail = { to: string; subject: string; text: string; html: string }

/** The parts of a mail. None of them is HTML. A text by a user must have passed `nameInMail` or `nameInSubject`. */
export type MailParts = {
  to: string
  locale: Locale
  subject: string
  greeting: string
  paragraphs: readonly string[]
  /** The link, and the words that it is shown under. */
  action?: { label: string; link: string }
  /** What stands under the link. */
  footer: string
}

/** Writes a mail as text and as HTML. All mails have this one layout. */
export function layOut({ to, locale, subject, greeting, paragraphs, action, footer }: MailParts): Mail {
  const lines = [greeting, ...paragraphs]
  return {
    to,
    subject,
    text: `${[...lines, ...(action ? [`${action.label}:\n${action.link}`] : []), footer].join('\n\n')}\n`,
    html: `<!doctype html>
<html lang="${locale}">
<meta charset="utf-8">
<meta name="format-detection" content="telephone=no, date=no, address=no, email=no, url=no">
${lines.map((line) => `<p>${escapeHtml(line)}</p>\n`).join('')}${
  action ? `<p><a href="${escapeHtml(action.link)}">${escapeHtml(action.label)}</a></p>\n` : ''
}<p>${escapeHtml(footer)}</p>
</html>
`
  }
}

const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }

function escapeHtml(text: string): string {
  return text.replaceAll(/[&<>"']/g, (character) => entities[character] as string)
}

export const locales = ['en', 'pt-BR'] as const
export type Locale = (typeof locales)[number]

/** A mail, ready to be sent. Every text in `html` that came from people is escaped. */
export type Mail = { to: string; subject: string; text: string; html: string }

export type InvitationFacts = {
  to: string
  locale: Locale
  tenant: string
  inviter: string
  role: string
  link: string
  expires_at: Date
}

const invitationTexts = {
  en: {
    subject: (f: InvitationFacts) => `${f.inviter} invites you to ${f.tenant}`,
    greeting: 'Hello,',
    body: (f: InvitationFacts) => `${f.inviter} invites you to join ${f.tenant} as ${f.role}.`,
    action: 'Accept the invitation',
    validity: (day: string) =>
      `The link is good until ${day}. If you did not expect this mail, there is nothing to do.`,
    roles: { admin: 'an admin', member: 'a member', viewer: 'a viewer' } as Record<string, string>
  },
  'pt-BR': {
    subject: (f: InvitationFacts) => `${f.inviter} convida você para ${f.tenant}`,
    greeting: 'Olá,',
    body: (f: InvitationFacts) => `${f.inviter} convida você para participar de ${f.tenant} como ${f.role}.`,
    action: 'Aceitar o convite',
    validity: (day: string) => `O link vale até ${day}. Se você não esperava este e-mail, não é preciso fazer nada.`,
    roles: { admin: 'administrador', member: 'membro', viewer: 'leitor' } as Record<string, string>
  }
}

/** The mail that carries an invitation's token. */
export function invitationMail(facts: InvitationFacts): Mail {
  const texts = invitationTexts[facts.locale]
  const said = { ...facts, role: texts.roles[facts.role] ?? facts.role }
  const day = new Intl.DateTimeFormat(facts.locale, { dateStyle: 'long', timeZone: 'UTC' }).format(facts.expires_at)
  return {
    to: facts.to,
    // a header is one line
    subject: texts.subject(said).replaceAll(/\s+/g, ' '),
    text: `${texts.greeting}\n\n${texts.body(said)}\n\n${texts.action}:\n${facts.link}\n\n${texts.validity(day)}\n`,
    html: `<!doctype html>
<html lang="${facts.locale}">
<meta charset="utf-8">
<p>${texts.greeting}</p>
<p>${escapeHtml(texts.body(said))}</p>
<p><a href="${escapeHtml(facts.link)}">${texts.action}</a></p>
<p>${texts.validity(day)}</p>
</html>
`
  }
}

const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }

function escapeHtml(text: string): string {
  return text.replaceAll(/[&<>"']/g, (character) => entities[character] as string)
}

import { nameInMail, nameInSubject } from '../names.ts'
import { type Locale, layOut, type Mail } from './layout.ts'

export type InvitationFacts = {
  to: string
  locale: Locale
  tenant: string
  inviter: string
  slug: string
  role: string
  link: string
  expires_at: Date
}

type InvitationWords = { tenant: string; inviter: string; role: string }

const invitationTexts = {
  en: {
    subject: (f: InvitationWords) => `${f.inviter} invites you to ${f.tenant}`,
    greeting: 'Hello,',
    body: (f: InvitationWords) => `${f.inviter} invites you to join ${f.tenant} as ${f.role}.`,
    action: 'Accept the invitation',
    validity: (day: string) =>
      `The link is good until ${day}. If you did not expect this mail, there is nothing to do.`,
    roles: { admin: 'an admin', member: 'a member', viewer: 'a viewer' } as Record<string, string>
  },
  'pt-BR': {
    subject: (f: InvitationWords) => `${f.inviter} convida você para ${f.tenant}`,
    greeting: 'Olá,',
    body: (f: InvitationWords) => `${f.inviter} convida você para participar de ${f.tenant} como ${f.role}.`,
    action: 'Aceitar o convite',
    validity: (day: string) => `O link vale até ${day}. Se você não esperava este e-mail, não é preciso fazer nada.`,
    roles: { admin: 'administrador', member: 'membro', viewer: 'leitor' } as Record<string, string>
  }
}

/** Writes the mail of an invitation, whose link contains the token. */
export function invitationMail(facts: InvitationFacts): Mail {
  const texts = invitationTexts[facts.locale]
  const wordsOf = (safe: (name: string) => string): InvitationWords => {
    const tenant = safe(facts.tenant) || facts.slug
    return { tenant, inviter: safe(facts.inviter) || tenant, role: texts.roles[facts.role] ?? facts.role }
  }
  const said = wordsOf(nameInMail)
  const day = new Intl.DateTimeFormat(facts.locale, { dateStyle: 'long', timeZone: 'UTC' }).format(facts.expires_at)
  return layOut({
    to: facts.to,
    locale: facts.locale,
    subject: texts.subject(wordsOf(nameInSubject)),
    greeting: texts.greeting,
    paragraphs: [texts.body(said)],
    action: { label: texts.action, link: facts.link },
    footer: texts.validity(day)
  })
}

import type { LinkPurpose } from '../auth/one-time-tokens.ts'
import { nameInMail, nameInSubject } from '../names.ts'
import { type AgencyNewsKind, agencyNewsTexts } from './agency-news.ts'
import { type Locale, layOut, type Mail } from './layout.ts'
import { noticeTexts } from './notice-texts.ts'
import type { AccountTexts, AccountWords, NoticeKind } from './notices.ts'

export type AccountMailKind = LinkPurpose | NoticeKind | AgencyNewsKind

/** What a mail about an account says. `agency` is undefined when the person is a member of none. */
export type AccountMailFacts = {
  kind: AccountMailKind
  to: string
  locale: Locale
  name: string
  agency: string | undefined
  /** The link and its end. Notices have none. */
  link: string | undefined
  expires_at: Date | undefined
  /** When it was asked for, or happened, and from where. */
  at: Date
  ip: string | undefined
  /** The address of the person whom it is about, when that is not the recipient. */
  person: string | undefined
  /** The domain that it is about. */
  domain: string | undefined
  /** The name of the provider that it is about, and the moment from which something holds. */
  provider: string | undefined
  from: Date | undefined
  user_agent: string | undefined
}

/** The paths behind `APP_URL` to which the links lead. They get the token as `?token=`. */
export const linkPaths: Record<LinkPurpose, string> = {
  reset: '/password/reset',
  verification: '/email/verify',
  change_from: '/email/verify',
  change_to: '/email/verify'
}

type LinkTexts = AccountTexts & { action: string }

const goodUntil = {
  en: (moment: string) => `The link can be used once, until ${moment}.`,
  'pt-BR': (moment: string) => `O link pode ser usado uma única vez, até ${moment}.`
}

const linkTexts: Record<Locale, Record<LinkPurpose, LinkTexts>> = {
  en: {
    reset: {
      subject: ({ agency }) => `Set a new password for ${agency}`,
      paragraphs: ({ agency }) => [`Somebody, hopefully you, asked for a new password for your account at ${agency}.`],
      action: 'Set a new password',
      footer: 'If it was not you, there is nothing to do: your password stays as it is.'
    },
    verification: {
      subject: ({ agency }) => `Confirm your e-mail address for ${agency}`,
      paragraphs: ({ agency }) => [`Please confirm that this address belongs to your account at ${agency}.`],
      action: 'Confirm the address',
      footer: 'If you have no such account, there is nothing to do.'
    },
    change_from: {
      subject: () => 'Confirm the change of your e-mail address',
      paragraphs: ({ agency }) => [
        `You asked that your account at ${agency} gets another e-mail address. Please confirm that you want this.`,
        'The change takes effect when the new address has been confirmed too.'
      ],
      action: 'Yes, change the address',
      footer: 'If it was not you, do not use the link, and change your password: somebody knows it.'
    },
    change_to: {
      subject: () => 'Confirm your new e-mail address',
      paragraphs: ({ name, agency }) => [
        `${name} asked that this address becomes that of their account at ${agency}. Please confirm that it is yours.`,
        'The change takes effect when the old address has been confirmed too.'
      ],
      action: 'Yes, this is my address',
      footer: 'If you do not know of this, there is nothing to do.'
    }
  },
  'pt-BR': {
    reset: {
      subject: ({ agency }) => `Defina uma nova senha para ${agency}`,
      paragraphs: ({ agency }) => [`Alguém, esperamos que você, pediu uma nova senha para a sua conta em ${agency}.`],
      action: 'Definir uma nova senha',
      footer: 'Se não foi você, não é preciso fazer nada: a sua senha continua a mesma.'
    },
    verification: {
      subject: ({ agency }) => `Confirme o seu e-mail para ${agency}`,
      paragraphs: ({ agency }) => [`Por favor, confirme que este endereço pertence à sua conta em ${agency}.`],
      action: 'Confirmar o endereço',
      footer: 'Se você não tem essa conta, não é preciso fazer nada.'
    },
    change_from: {
      subject: () => 'Confirme a troca do seu e-mail',
      paragraphs: ({ agency }) => [
        `Você pediu que a sua conta em ${agency} passe a ter outro e-mail. Por favor, confirme que é isso que você quer.`,
        'A troca vale quando o novo endereço também for confirmado.'
      ],
      action: 'Sim, trocar o e-mail',
      footer: 'Se não foi você, não use o link e troque a sua senha: alguém a conhece.'
    },
    change_to: {
      subject: () => 'Confirme o seu novo e-mail',
      paragraphs: ({ name, agency }) => [
        `${name} pediu que este endereço passe a ser o da sua conta em ${agency}. Por favor, confirme que ele é seu.`,
        'A troca vale quando o endereço antigo também for confirmado.'
      ],
      action: 'Sim, este endereço é meu',
      footer: 'Se você não sabe do que se trata, não é preciso fazer nada.'
    }
  }
}

const greetings = { en: 'Hello,', 'pt-BR': 'Olá,' }

/** Writes a mail about an account, in the language of the agency. */
export function accountMail(facts: AccountMailFacts): Mail {
  const { kind, to, locale, link, expires_at } = facts
  const wordsOf = (safe: (name: string) => string): AccountWords => {
    const agency = safe(facts.agency ?? '') || 'Aggios'
    const device = [nameInMail(facts.user_agent ?? ''), facts.ip && `IP ${facts.ip}`].filter(Boolean).join(', ')
    return {
      agency,
      name: safe(facts.name) || agency,
      domain: facts.domain ?? '',
      person: facts.person ?? '',
      provider: safe(facts.provider ?? ''),
      from: facts.from ? momentIn(locale, facts.from) : '',
      moment: momentIn(locale, facts.at),
      device: device || '?'
    }
  }
  const words = wordsOf(nameInMail)
  const common = { to, locale, greeting: greetings[locale] }
  if (isLink(kind)) {
    const texts = linkTexts[locale][kind]
    if (link === undefined || expires_at === undefined) throw new TypeError(`a mail of the kind ${kind} needs a link`)
    return layOut({
      ...common,
      subject: texts.subject(wordsOf(nameInSubject)),
      paragraphs: texts.paragraphs(words),
      action: { label: texts.action, link },
      footer: `${goodUntil[locale](momentIn(locale, expires_at))} ${texts.footer}`
    })
  }
  const texts: AccountTexts = { ...noticeTexts[locale], ...agencyNewsTexts[locale] }[kind]
  return layOut({
    ...common,
    subject: texts.subject(wordsOf(nameInSubject)),
    paragraphs: texts.paragraphs(words),
    footer: texts.footer
  })
}

function isLink(kind: AccountMailKind): kind is LinkPurpose {
  return kind in linkPaths
}

/** The link of a mail. Without an agency it leads to the host above the agencies' hosts. */
export function linkTo(appUrl: string, slug: string | undefined, purpose: LinkPurpose, token: string): string {
  const origin = slug === undefined ? appUrl.replaceAll(/\{slug\}\.?/g, '') : appUrl.replaceAll('{slug}', slug)
  return `${origin.replace(/\/$/, '')}${linkPaths[purpose]}?token=${token}`
}

function momentIn(locale: Locale, date: Date): string {
  const format = new Intl.DateTimeFormat(locale, { dateStyle: 'long', timeStyle: 'short', timeZone: 'UTC' })
  return `${format.format(date)} UTC`
}

import type { Locale } from './layout.ts'

/** Texts by people, and dates, in the form in which the sentences of a mail contain them. */
export type AccountWords = Record<
  'name' | 'agency' | 'domain' | 'person' | 'provider' | 'from' | 'moment' | 'device',
  string
>

export type AccountTexts = {
  subject: (words: AccountWords) => string
  paragraphs: (words: AccountWords) => string[]
  footer: string
}

/**
 * The kinds of mails that only tell a person what happened to their account, or to the agency that they run. `address_taken` goes to whoever has an
 * address that somebody else wants to have, instead of a link.
 *
 * A new kind needs its texts in `noticeTexts`, and a call of `queueNotice` or `queueAgencyNotice` in the transaction of the change.
 */
export const noticeKinds = [
  'address_taken',
  'break_glass_used',
  'domain_lost',
  'email_changed',
  'factor_enabled',
  'factor_removed',
  'identity_linked',
  'identity_unlinked',
  'new_device',
  'passkey_added',
  'passkey_refused',
  'passkey_removed',
  'password_changed',
  'recovery_code_used',
  'recovery_codes_renewed',
  'totp_removed'
] as const
export type NoticeKind = (typeof noticeKinds)[number]

export const noticeTexts: Record<Locale, Record<NoticeKind, AccountTexts>> = {
  en: {
    address_taken: {
      subject: () => 'Somebody tried to use your e-mail address',
      paragraphs: () => [
        'Somebody asked to use this address for another account. It belongs to your account, so nothing was changed.'
      ],
      footer: 'If it was you, choose another address, or sign in to the account that has this one.'
    },
    break_glass_used: {
      subject: ({ agency }) => `Somebody came into ${agency} without its provider`,
      paragraphs: ({ agency, person, moment, device }) => [
        `${person}, a break-glass owner of ${agency}, signed in on ${moment} without the provider that the agency demands.`,
        `Device: ${device}`
      ],
      footer: 'If you do not know why, ask them, and sign them out of the agency.'
    },
    domain_lost: {
      subject: ({ agency, domain }) => `${agency} no longer has a proof of ${domain}`,
      paragraphs: ({ agency, domain, moment }) => [
        `The record in DNS that proves ${domain} for ${agency} was missing for three days, until ${moment}.`,
        'Nobody new is taken in by that domain any more. Everybody who is in stays in.'
      ],
      footer: 'Publish the record again and verify the domain, or remove it from the agency.'
    },
    email_changed: {
      subject: () => 'Your e-mail address was changed',
      paragraphs: ({ agency, moment }) => [
        `Since ${moment} your account at ${agency} has another e-mail address. Mails about it no longer come here.`
      ],
      footer: 'If it was not you, turn to the people who run the agency at once.'
    },
    factor_enabled: {
      subject: () => 'A second factor was set up for your account',
      paragraphs: ({ agency, moment, device }) => [
        `Since ${moment} signing in to your account at ${agency} takes a code of an app besides the password.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, set a new password, and turn to the people who run the agency at once.'
    },
    factor_removed: {
      subject: () => 'The second factor of your account was removed',
      paragraphs: ({ agency, moment, device }) => [
        `Since ${moment} signing in to your account at ${agency} takes the password only.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, set a new password, and a new second factor, at once.'
    },
    identity_linked: {
      subject: () => 'Another way to sign in to your account',
      paragraphs: ({ agency, moment, device }) => [
        `Since ${moment} an account at another service can be used to sign in to your account at ${agency}.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, remove it, set a new password, and turn to the people who run the agency at once.'
    },
    identity_unlinked: {
      subject: () => 'A way to sign in to your account was removed',
      paragraphs: ({ agency, moment, device }) => [
        `Since ${moment} an account at another service can no longer be used to sign in to your account at ${agency}.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, set a new password at once. That ends all sessions.'
    },
    new_device: {
      subject: ({ agency }) => `A new sign-in to your account at ${agency}`,
      paragraphs: ({ agency, moment, device }) => [
        `Somebody signed in to your account at ${agency} on ${moment}, with a device and from a network that were not used before.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, set a new password. That ends all sessions.'
    },
    passkey_added: {
      subject: () => 'A passkey was added to your account',
      paragraphs: ({ agency, moment, device }) => [
        `On ${moment} a passkey was added to your account at ${agency}. It signs in without the password. Signing in with the password takes a second factor as well.`,
        `Device: ${device}`
      ],
      footer:
        'If it was not you, remove the passkey, set a new password, and turn to the people who run the agency at once.'
    },
    passkey_refused: {
      subject: () => 'A passkey of your account may have been copied',
      paragraphs: ({ agency, moment, device }) => [
        `On ${moment} a passkey was refused for your account at ${agency}, because it looked like a copy of yours.`,
        `Device: ${device}`
      ],
      footer: 'Remove your passkey and add a new one. If it was not you, tell the people who run the agency at once.'
    },
    passkey_removed: {
      subject: () => 'A passkey of your account was removed',
      paragraphs: ({ agency, moment, device }) => [
        `On ${moment} a passkey was removed from your account at ${agency}. It cannot be used to sign in any more.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, set a new password, and look at the factors of your account at once.'
    },
    password_changed: {
      subject: () => 'Your password was changed',
      paragraphs: ({ agency, moment, device }) => [
        `The password of your account at ${agency} was changed on ${moment}.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, ask for a new password at once. That ends all sessions.'
    },
    recovery_code_used: {
      subject: () => 'A recovery code of your account was used',
      paragraphs: ({ agency, moment, device }) => [
        `A recovery code of your account at ${agency} was used on ${moment}. It cannot be used again.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, set a new password and ask for new recovery codes at once.'
    },
    recovery_codes_renewed: {
      subject: () => 'Your recovery codes were replaced',
      paragraphs: ({ agency, moment, device }) => [
        `The recovery codes of your account at ${agency} were replaced on ${moment}. The old ones cannot be used any more.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, set a new password, and a new second factor, at once.'
    },
    totp_removed: {
      subject: () => 'The authenticator app of your account was removed',
      paragraphs: ({ agency, moment, device }) => [
        `Since ${moment} signing in to your account at ${agency} takes no code of an app any more, but a passkey.`,
        `Device: ${device}`
      ],
      footer: 'If it was not you, set a new password, and look at the passkeys of your account at once.'
    }
  },
  'pt-BR': {
    address_taken: {
      subject: () => 'Alguém tentou usar o seu e-mail',
      paragraphs: () => [
        'Alguém pediu para usar este endereço em outra conta. Ele pertence à sua conta, então nada mudou.'
      ],
      footer: 'Se foi você, escolha outro endereço ou entre na conta que tem este.'
    },
    break_glass_used: {
      subject: ({ agency }) => `Alguém entrou em ${agency} sem o provedor`,
      paragraphs: ({ agency, person, moment, device }) => [
        `${person}, responsável com acesso de emergência de ${agency}, entrou em ${moment} sem o provedor que a agência exige.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se você não sabe o motivo, pergunte à pessoa e encerre as sessões dela na agência.'
    },
    domain_lost: {
      subject: ({ agency, domain }) => `${agency} não tem mais uma prova de ${domain}`,
      paragraphs: ({ agency, domain, moment }) => [
        `O registro no DNS que prova que ${domain} é de ${agency} faltou por três dias, até ${moment}.`,
        'Ninguém novo entra mais por esse domínio. Quem já está na agência continua nela.'
      ],
      footer: 'Publique o registro novamente e verifique o domínio, ou remova-o da agência.'
    },
    email_changed: {
      subject: () => 'O seu e-mail foi trocado',
      paragraphs: ({ agency, moment }) => [
        `Desde ${moment} a sua conta em ${agency} tem outro e-mail. As mensagens sobre ela não chegam mais aqui.`
      ],
      footer: 'Se não foi você, procure imediatamente quem administra a agência.'
    },
    factor_enabled: {
      subject: () => 'A verificação em duas etapas da sua conta foi ativada',
      paragraphs: ({ agency, moment, device }) => [
        `Desde ${moment}, entrar na sua conta em ${agency} pede, além da senha, um código de um aplicativo.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, defina uma nova senha e procure imediatamente quem administra a agência.'
    },
    factor_removed: {
      subject: () => 'A verificação em duas etapas da sua conta foi removida',
      paragraphs: ({ agency, moment, device }) => [
        `Desde ${moment}, entrar na sua conta em ${agency} pede apenas a senha.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, defina imediatamente uma nova senha e ative a verificação de novo.'
    },
    identity_linked: {
      subject: () => 'Uma nova forma de entrar na sua conta',
      paragraphs: ({ agency, moment, device }) => [
        `Desde ${moment}, uma conta em outro serviço pode ser usada para entrar na sua conta em ${agency}.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, remova-a, defina uma nova senha e procure imediatamente quem administra a agência.'
    },
    identity_unlinked: {
      subject: () => 'Uma forma de entrar na sua conta foi removida',
      paragraphs: ({ agency, moment, device }) => [
        `Desde ${moment}, uma conta em outro serviço não pode mais ser usada para entrar na sua conta em ${agency}.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, defina imediatamente uma nova senha. Isso encerra todas as sessões.'
    },
    new_device: {
      subject: ({ agency }) => `Um novo acesso à sua conta em ${agency}`,
      paragraphs: ({ agency, moment, device }) => [
        `Alguém entrou na sua conta em ${agency} em ${moment}, com um aparelho e de uma rede que não tinham sido usados antes.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, defina uma nova senha. Isso encerra todas as sessões.'
    },
    passkey_added: {
      subject: () => 'Uma chave de acesso foi adicionada à sua conta',
      paragraphs: ({ agency, moment, device }) => [
        `Em ${moment}, uma chave de acesso (passkey) foi adicionada à sua conta em ${agency}. Com ela se entra sem a senha. Entrar com a senha passa a pedir também uma segunda etapa.`,
        `Aparelho: ${device}`
      ],
      footer:
        'Se não foi você, remova a chave de acesso, defina uma nova senha e procure imediatamente quem administra a agência.'
    },
    passkey_refused: {
      subject: () => 'Uma chave de acesso da sua conta pode ter sido copiada',
      paragraphs: ({ agency, moment, device }) => [
        `Em ${moment}, uma chave de acesso (passkey) foi recusada na sua conta em ${agency}, porque parecia uma cópia da sua.`,
        `Aparelho: ${device}`
      ],
      footer: 'Remova a sua chave e adicione outra. Se não foi você, avise imediatamente quem administra a agência.'
    },
    passkey_removed: {
      subject: () => 'Uma chave de acesso da sua conta foi removida',
      paragraphs: ({ agency, moment, device }) => [
        `Em ${moment}, uma chave de acesso (passkey) foi removida da sua conta em ${agency}. Ela não serve mais para entrar.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, defina imediatamente uma nova senha e confira as etapas de verificação da sua conta.'
    },
    password_changed: {
      subject: () => 'A sua senha foi trocada',
      paragraphs: ({ agency, moment, device }) => [
        `A senha da sua conta em ${agency} foi trocada em ${moment}.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, peça uma nova senha imediatamente. Isso encerra todas as sessões.'
    },
    recovery_code_used: {
      subject: () => 'Um código de recuperação da sua conta foi usado',
      paragraphs: ({ agency, moment, device }) => [
        `Um código de recuperação da sua conta em ${agency} foi usado em ${moment}. Ele não pode ser usado de novo.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, defina imediatamente uma nova senha e peça novos códigos de recuperação.'
    },
    recovery_codes_renewed: {
      subject: () => 'Os seus códigos de recuperação foram trocados',
      paragraphs: ({ agency, moment, device }) => [
        `Os códigos de recuperação da sua conta em ${agency} foram trocados em ${moment}. Os antigos não valem mais.`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, defina imediatamente uma nova senha e ative a verificação de novo.'
    },
    totp_removed: {
      subject: () => 'O aplicativo de códigos da sua conta foi removido',
      paragraphs: ({ agency, moment, device }) => [
        `Desde ${moment}, entrar na sua conta em ${agency} não pede mais um código de um aplicativo, e sim uma chave de acesso (passkey).`,
        `Aparelho: ${device}`
      ],
      footer: 'Se não foi você, defina imediatamente uma nova senha e confira as chaves de acesso da sua conta.'
    }
  }
}

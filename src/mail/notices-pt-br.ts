import type { AccountTexts, NoticeKind } from './notices.ts'

export const portugueseNotices: Record<NoticeKind, AccountTexts> = {
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
  },
  webhook_disabled: {
    subject: ({ agency }) => `Um webhook de ${agency} foi desligado`,
    paragraphs: ({ agency, domain, moment }) => [
      `Um webhook de ${agency} em ${domain} foi desligado em ${moment}: ele falhou por três dias ou respondeu que não existe mais.`,
      'Nada mais é enviado para lá. O que acontecer enquanto isso pode ser enviado de novo depois.'
    ],
    footer: 'Conserte-o e ative-o novamente, ou remova-o da agência.'
  }
}

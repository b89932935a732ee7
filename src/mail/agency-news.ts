import type { Locale } from './layout.ts'
import type { AccountTexts } from './notices.ts'

/**
 * What an agency demands of its members from now on. All of them get it, so it waits for every other mail, and is counted apart
 * from notices about an account (`is_agency_news` in db/migrations/0029_agency_news.ts).
 */
export const agencyNewsKinds = [
  'factor_demand_ended',
  'factor_demanded',
  'provider_demand_ended',
  'provider_demanded'
] as const
export type AgencyNewsKind = (typeof agencyNewsKinds)[number]

export const agencyNewsTexts: Record<Locale, Record<AgencyNewsKind, AccountTexts>> = {
  en: {
    factor_demanded: {
      subject: ({ agency }) => `${agency} demands a second factor`,
      paragraphs: ({ agency, from }) => [
        `From ${from} on, signing in to ${agency} takes a second factor: a passkey, or a code of an app.`,
        'If your account has one, there is nothing to do. Else you are asked to set one up when you next sign in after that.'
      ],
      footer: 'You can set one up earlier, in the settings of your account.'
    },
    factor_demand_ended: {
      subject: ({ agency }) => `${agency} no longer demands a second factor`,
      paragraphs: ({ agency, moment }) => [
        `Since ${moment} signing in to ${agency} no longer needs a second factor.`,
        'One that you have set up stays, and goes on to protect your account.'
      ],
      footer: 'There is nothing to do.'
    },
    provider_demanded: {
      subject: ({ agency }) => `${agency} has a new way to sign in`,
      paragraphs: ({ agency, provider, moment }) => [
        `Since ${moment} people come into ${agency} through ${provider} only. A password or another service no longer opens it.`,
        'What you have open stays open for a day at most. Your sign-in to other agencies is as before.'
      ],
      footer: 'If you have no account there, ask the people who run the agency.'
    },
    provider_demand_ended: {
      subject: ({ agency }) => `${agency} can be signed in to as before`,
      paragraphs: ({ agency, provider, moment }) => [
        `Since ${moment} people come into ${agency} as they like again, and no longer through ${provider} only.`
      ],
      footer: 'If you have no password, the mail for a forgotten password sets one.'
    }
  },
  'pt-BR': {
    factor_demanded: {
      subject: ({ agency }) => `${agency} exige a verificação em duas etapas`,
      paragraphs: ({ agency, from }) => [
        `A partir de ${from}, entrar em ${agency} exige uma segunda etapa: uma chave de acesso (passkey) ou um código de um aplicativo.`,
        'Se a sua conta já tem uma, não é preciso fazer nada. Se não tem, você poderá ativá-la quando entrar depois dessa data.'
      ],
      footer: 'Você pode ativá-la antes, nas configurações da sua conta.'
    },
    factor_demand_ended: {
      subject: ({ agency }) => `${agency} não exige mais a verificação em duas etapas`,
      paragraphs: ({ agency, moment }) => [
        `Desde ${moment}, entrar em ${agency} não exige mais uma segunda etapa.`,
        'A que você ativou continua, e segue protegendo a sua conta.'
      ],
      footer: 'Não é preciso fazer nada.'
    },
    provider_demanded: {
      subject: ({ agency }) => `${agency} tem uma nova forma de entrar`,
      paragraphs: ({ agency, provider, moment }) => [
        `Desde ${moment}, só se entra em ${agency} por ${provider}. Uma senha ou outro serviço não abre mais a agência.`,
        'O que você tem aberto continua aberto por um dia, no máximo. A entrada nas suas outras agências continua a mesma.'
      ],
      footer: 'Se você não tem uma conta lá, fale com quem administra a agência.'
    },
    provider_demand_ended: {
      subject: ({ agency }) => `Entre em ${agency} como antes`,
      paragraphs: ({ agency, provider, moment }) => [
        `Desde ${moment}, as pessoas entram em ${agency} como quiserem, e não mais só por ${provider}.`
      ],
      footer: 'Se você não tem senha, o e-mail de senha esquecida define uma.'
    }
  }
}

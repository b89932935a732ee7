import type { AccountTexts, NoticeKind } from './notices.ts'

export const englishNotices: Record<NoticeKind, AccountTexts> = {
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
  },
  webhook_disabled: {
    subject: ({ agency }) => `A webhook of ${agency} was switched off`,
    paragraphs: ({ agency, domain, moment }) => [
      `A webhook of ${agency} at ${domain} was switched off on ${moment}: either it failed for three days, or it answered that it is gone for good.`,
      'Nothing is sent there any more. What happens meanwhile can be sent again later.'
    ],
    footer: 'Repair it and enable it again, or remove it from the agency.'
  }
}
